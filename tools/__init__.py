"""Tools of the workshop; none is part of the installed package."""
