"""How large a KV cache is: the rule, what each architecture and each engine changes about it, and common mistakes."""
