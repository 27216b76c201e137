"""Settings for the tests of this room."""

from hypothesis import settings

# No test here is about time, and a busy machine or a first compilation is no failure.
settings.register_profile("protocol", deadline=None)
settings.load_profile("protocol")
