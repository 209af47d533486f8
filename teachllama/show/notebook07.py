"""The pictures of notebook 07; they live in `teachllama.lessons.n07_embeddings`."""

from teachllama.lessons.n07_embeddings.pictures import *  # noqa: F403
