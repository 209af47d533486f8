"""The pictures of notebook 00, defined in `teachllama.lessons.n00_transformer`."""

from teachllama.lessons.n00_transformer.pictures import *  # noqa: F403
