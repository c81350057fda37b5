"""Classification measures, by scikit-learn, under the field's names."""

from collections.abc import Sequence

from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support


def classification(truth: Sequence[int], predicted: Sequence[int], classes: Sequence[str]) -> dict:
    """Accuracy, macro precision, recall and F1, the same per class, and the confusion matrix.

    ``recall`` is the mean recall of the classes that occur, the field's unweighted accuracy (UA); ``accuracy`` is
    the weighted one. Rows of ``confusion`` are the truth.
    """
    labels = list(range(len(classes)))
    present = sorted(set(truth))
    precision, recall, f1, support = precision_recall_fscore_support(truth, predicted, labels=labels, zero_division=0)
    macro = precision_recall_fscore_support(truth, predicted, labels=present, average="macro", zero_division=0)
    return {
        "accuracy": float(accuracy_score(truth, predicted)),
        "precision": float(macro[0]),
        "recall": float(macro[1]),
        "f1": float(macro[2]),
        "per_class": {
            name: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(s)}
            for name, p, r, f, s in zip(classes, precision, recall, f1, support)
        },
        "confusion": confusion_matrix(truth, predicted, labels=labels).tolist(),
    }
