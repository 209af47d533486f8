"""How much memory this process holds, how much of it is resident, and what still refers to an object.

Independent of models: a session is any object with `k_cache` and `v_cache`. Sizes are in bytes; 1 MB is 10^6 bytes.
"""

from teachllama.memory.holders import KINDS, Holder, Report, Watch, forget_history, watch, who_refers_to
from teachllama.memory.measuring import Usage, machine_memory, resident_of, settle, usage
from teachllama.memory.timeline import Snapshot, Timeline

__all__ = [
    "KINDS",
    "Holder",
    "Report",
    "Snapshot",
    "Timeline",
    "Usage",
    "Watch",
    "forget_history",
    "machine_memory",
    "resident_of",
    "settle",
    "usage",
    "watch",
    "who_refers_to",
]
