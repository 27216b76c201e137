"""Errors named by whose fault they are. Each message says what is wrong and what to do about it.

Peer: protocol.rejection.Rejection. Operator: ConfigError. Environment: ServiceError. Us: assert.
The command line (cli/main.py) prints the first two lines of a message and exits with `exit_code`.
"""


class CitrateError(Exception):
    """Base of the errors that a person is shown without a traceback."""

    exit_code = 1


class ConfigError(CitrateError):
    """The operator wrote something that cannot be right: a flag, a file, a key, a value."""

    exit_code = 2


class PresetError(ConfigError):
    """A preset breaks a relation between its numbers."""


class ServiceError(CitrateError):
    """Something outside this process is absent, refuses, or answered wrongly."""
