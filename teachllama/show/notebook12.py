"""The pictures of notebook 12, defined in `teachllama.lessons.n12_same_prompt`."""

from teachllama.lessons.n12_same_prompt.pictures import *  # noqa: F403
