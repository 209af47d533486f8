"""The checks of notebook 08, defined in `teachllama.lessons.n08_serving`."""

from teachllama.lessons.n08_serving.checks import *  # noqa: F403
