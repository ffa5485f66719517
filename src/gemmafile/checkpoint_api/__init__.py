"""The Python of Gemma's model card: AutoTokenizer, AutoModelForCausalLM and their kin, without torch.

    from gemmafile import AutoTokenizer, AutoModelForCausalLM

    tokenizer = AutoTokenizer.from_pretrained("google/gemma-2-27b-it")
    model = AutoModelForCausalLM.from_pretrained("google/gemma-2-27b-it", device_map="auto")
    outputs = model.generate(**tokenizer("Write me a poem.", return_tensors="pt").to(model.device))
    print(tokenizer.decode(outputs[0]))

Names, arguments and results are those of transformers 5; a name is a checkpoint's folder, a GGUF, a llamafile, or one
of the hub's. Arrays are torch's where torch is installed and "pt" is asked for, else NumPy's.

    arrays.py      arrays that know .to(device)          tokenizer.py   texts and chats to ids, and back
    generation.py  how the next token is chosen          streamers.py   text while it is made
    model.py       the model                             sources.py     what a name means
    arguments.py   what from_pretrained is asked for     in_memory.py   weights in another format
    weights.py     weights by name; saving
"""

from gemmafile.checkpoint_api.arguments import BitsAndBytesConfig
from gemmafile.checkpoint_api.arrays import BatchEncoding
from gemmafile.checkpoint_api.generation import GenerationConfig
from gemmafile.checkpoint_api.model import AutoModelForCausalLM, CausalLM
from gemmafile.checkpoint_api.streamers import TextIteratorStreamer, TextStreamer
from gemmafile.checkpoint_api.tokenizer import AutoTokenizer, CardTokenizer

__all__ = [
    "AutoModelForCausalLM",
    "AutoTokenizer",
    "BatchEncoding",
    "BitsAndBytesConfig",
    "CardTokenizer",
    "CausalLM",
    "GenerationConfig",
    "TextIteratorStreamer",
    "TextStreamer",
]
