"""For all rooms: this folder is importable (small_network), and hypothesis does not judge a busy machine."""

from hypothesis import settings

settings.register_profile("citrate", deadline=None)
settings.load_profile("citrate")
