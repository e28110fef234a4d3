"""Score texts with the torch module alone; imports nothing of the project.

Reads a JSON list of texts on standard input, writes a JSON list of scores.
Argument: the folder of the downloaded model.
"""

import json
import sys
from pathlib import Path

import mlflow.pytorch
import torch
from torchtext.data.utils import get_tokenizer, ngrams_iterator

folder = Path(sys.argv[1])
vocabulary = (folder / "serving" / "vocabulary.txt").read_bytes().decode().split("\n")
index = {ngram: row for row, ngram in enumerate(vocabulary[:-1])}
order = json.loads((folder / "serving" / "manifest.json").read_bytes())["ngrams"]
tokenize = get_tokenizer("basic_english")
module = mlflow.pytorch.load_model(str(folder)).double()

bags = [
    [index.get(ngram, 0) for ngram in ngrams_iterator(tokenize(text), order)]
    for text in json.load(sys.stdin)
]
lengths = torch.tensor([len(bag) for bag in bags])
indices = torch.tensor([row for bag in bags for row in bag], dtype=torch.int64)
with torch.no_grad():
    scores = module(indices, torch.cumsum(lengths, 0) - lengths)
assert scores.dtype == torch.float64
assert not {"functions", "trainer"} & sys.modules.keys()
json.dump(scores.tolist(), sys.stdout)
