"""How fast and lean predict is, beside three other ways to serve the same model."""

# What `torch_server` reads: the state of the module, and an n-gram a line.
TORCH_STATE = "state.pt"
TORCH_VOCABULARY = "vocabulary.txt"

ORDER = 2
EMBEDDING_DIM = 32
