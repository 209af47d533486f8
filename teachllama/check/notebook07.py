"""The checks of notebook 07, defined in `teachllama.lessons.n07_embeddings`."""

from teachllama.lessons.n07_embeddings.checks import *  # noqa: F403
