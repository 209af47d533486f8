"""The pictures and the moving picture of notebook 01, defined in `teachllama.lessons.n01_generation`."""

from teachllama.lessons.n01_generation.moving import *  # noqa: F403
from teachllama.lessons.n01_generation.pictures import *  # noqa: F403
