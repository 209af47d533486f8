"""The checks of notebook 00, defined in `teachllama.lessons.n00_transformer`."""

from teachllama.lessons.n00_transformer.checks import *  # noqa: F403
