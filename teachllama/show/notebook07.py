"""The pictures of notebook 07, defined in `teachllama.lessons.n07_embeddings`."""

from teachllama.lessons.n07_embeddings.pictures import *  # noqa: F403
