"""The fixtures that run commands."""

from tests.cli.conftest import command, plain_environment

__all__ = ["command", "plain_environment"]
