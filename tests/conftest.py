"""For all rooms: this folder is importable (small_network), and hypothesis does not judge a busy machine.

The examples of a property test are the same in every run, so that a red run is repeated by the same command;
`make test-random` looks for new ones. Half of the usual number keeps the protocol's laws within their minute.
"""

from hypothesis import settings

settings.register_profile("citrate", deadline=None, max_examples=50, derandomize=True)
settings.register_profile("random", deadline=None, max_examples=50, print_blob=True)
settings.load_profile("citrate")
