"""Systems measured by the two papers, by the paper's name and in the order of its tables."""

from typing import NamedTuple


class System(NamedTuple):
    """A model's name in ``ser_fast.models.MODELS`` and the options that make it this system.

    Example:
        >>> from ser_fast.models import MODELS
        >>> system = SYSTEMS["CNN+LSTM"]
        >>> system
        System(model='baseline', options={'encoder': 'cnn_lstm'})
        >>> type(MODELS[system.model](7, **system.options)).__name__
        'Baseline'
    """

    model: str
    options: dict


# Experiments 1 and 2: the paper's baselines, then CGRU without and with attention.
PAPER_1 = {
    "LSTM (paper 1)": System("cgru", {"convolution": False, "attention": False, "cell": "lstm"}),
    "Attention-LSTM": System("cgru", {"convolution": False, "cell": "lstm"}),
    "DCNN-LSTM": System("cgru", {"attention": False, "cell": "lstm"}),
    "CGRU without attention": System("cgru", {"attention": False}),
    "CGRU": System("cgru", {}),
}
# Table 6.
PAPER_2 = {
    "CNN": System("baseline", {"encoder": "cnn"}),
    "LSTM (paper 2)": System("baseline", {"encoder": "lstm"}),
    "RNN": System("baseline", {"encoder": "rnn"}),
    "CNN+LSTM": System("baseline", {"encoder": "cnn_lstm"}),
    "Bi-GRU": System("baseline", {"encoder": "bigru"}),
    "Self-Attention": System("baseline", {"encoder": "linear", "num_heads": 1}),
    "Bi-GRU + Self-Attention": System("baseline", {"encoder": "bigru", "num_heads": 1}),
    "Multi-head Attention": System("baseline", {"encoder": "linear", "num_heads": 8}),
    "Bi-GRU + MHA": System("bigru_mha", {"num_heads": 8}),
}
# Table 3 and figure 4.
PAPER_2_HEADS = {"Bi-GRU": PAPER_2["Bi-GRU"]} | {
    f"Bi-GRU + MHA, {heads} heads": System("bigru_mha", {"num_heads": heads}) for heads in (4, 8, 16, 32)
}
SYSTEMS = PAPER_1 | PAPER_2 | PAPER_2_HEADS
