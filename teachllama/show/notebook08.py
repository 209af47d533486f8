"""The pictures of notebook 08; they live in `teachllama.lessons.n08_serving`."""

from teachllama.lessons.n08_serving.pictures import *  # noqa: F403
