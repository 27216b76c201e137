"""Settings for the tests of this room."""

from hypothesis import settings

# No test here is about time, and a busy machine or a first compilation is no failure. Half of the usual
# examples keep the room within its minute; every run draws others.
settings.register_profile("protocol", deadline=None, max_examples=50)
settings.load_profile("protocol")
