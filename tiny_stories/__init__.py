"""How the model that teachllama ships was made: corpus, tokenizer, training, export, measurement. See README.md.

Not part of the installed package; needs PyTorch and `tokenizers`, which the package does not.
"""
