"""Settings with which training takes a moment. A module of its own: several folders have a conftest."""

from citrate_node.training.settings import LoraSettings, TrainSettings

SMALL = LoraSettings(rank=2, alpha=4)
SHORT = TrainSettings(steps=3, batch_sequences=4, sequence_bytes=64, learning_rate=0.02)
