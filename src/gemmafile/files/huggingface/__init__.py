"""Hugging Face checkpoints: a folder of safetensors, tokenizer and configuration, opened like a GGUF.

    safetensors.py   one file of tensors: its header, checked
    folder.py        the folder: JSON files, shards and their index
    tensor_names.py  names and layouts of tensors, from Hugging Face's to GGUF's
    sizes.py         config.json to the keys of the architecture
    special.py       special tokens, chat templates
    vocabulary.py    tokenizer.model or tokenizer.json to the arrays of GGUF
    provenance.py    what the model is called, where it comes from: the keys `general.*`
    checkpoint.py    all of it together: a folder as a `ModelFile`

What is written in the keys, and in which order, follows llama.cpp's convert_hf_to_gguf.py: `gemmafile convert`
writes them to a file as they are here.
"""
