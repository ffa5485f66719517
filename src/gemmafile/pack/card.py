"""Licences: what travels with weights beside the weights."""

from __future__ import annotations

GEMMA_NOTICE = "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms"
"""The notice that section 3.1 of the Gemma Terms of Use asks for with every copy."""

GEMMA_LICENCE = f"""{GEMMA_NOTICE}

The weights in this file are not open source. Their terms, and the Prohibited Use Policy that is part of them, are at
https://ai.google.dev/gemma/terms and https://ai.google.dev/gemma/prohibited_use_policy

Whoever packed this file has accepted these terms. Whoever uses it, or passes it on, is bound by them too: they must
travel with every copy, together with the notice above.
"""
