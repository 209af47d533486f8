"""The checks of notebook 12, defined in `teachllama.lessons.n12_same_prompt`."""

from teachllama.lessons.n12_same_prompt.checks import *  # noqa: F403
