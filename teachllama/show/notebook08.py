"""The pictures of notebook 08, defined in `teachllama.lessons.n08_serving`."""

from teachllama.lessons.n08_serving.pictures import *  # noqa: F403
