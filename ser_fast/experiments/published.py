"""Numbers printed in the two papers, each with its table or experiment; in percent unless stated."""

NOT_GIVEN = "not given"

# Paper 1, experiment 1: gain of precision by attention, in points; given for one emotion only.
ATTENTION_GAIN = {"fear": 8.0}
# Paper 1, experiment 2: training time in percent of the LSTM baseline's.
TIME_OF_LSTM = 60.0
# Paper 1, experiment 3: best optimiser and learning rate.
BEST_OPTIMIZER = ("adam", 0.005)

# Paper 2, table 3 and figure 4: UA by number of heads; 0 is the Bi-GRU alone.
HEADS = {
    "IEMOCAP": {0: 77.01, 4: 80.47, 8: 89.89, 16: 81.04, 32: 79.32},
    "Emo-DB": {0: 89.22, 4: 90.66, 8: 94.93, 16: 92.81, 32: 91.03},
}
# Paper 2, table 4.
OVERALL = {
    "IEMOCAP": {"precision": 89.33, "accuracy": 81.04, "recall": 76.20},
    "Emo-DB": {"precision": 80.57, "accuracy": 94.93, "recall": 86.20},
}
# Paper 2, table 5: accuracy of each emotion, by printed column; see MISPLACED.
EMOTIONS = {
    "IEMOCAP": {
        "neutral": 85.25, "anger": 97.11, "happiness": 79.75, "sadness": 88.21,
        "fear": 95.74, "disgust": 92.34, "boredom": 95.55,
    },
    "Emo-DB": {"neutral": 92.64, "anger": 71.50, "happiness": 61.05, "sadness": 94.64},
}  # fmt: skip
# Paper 2, table 6: accuracy, by system name of ser_fast.models.systems.
COMPARISON = {
    "IEMOCAP": {
        "CNN": 75.80, "LSTM (paper 2)": 76.10, "RNN": 76.22, "CNN+LSTM": 78.17, "Bi-GRU": 77.01,
        "Self-Attention": 77.87, "Bi-GRU + Self-Attention": 79.21, "Multi-head Attention": 78.13,
        "Bi-GRU + MHA": 81.04,
    },
    "Emo-DB": {
        "CNN": 76.58, "LSTM (paper 2)": 83.73, "RNN": 85.91, "CNN+LSTM": 89.79, "Bi-GRU": 89.22,
        "Self-Attention": 88.91, "Bi-GRU + Self-Attention": 90.58, "Multi-head Attention": 89.37,
        "Bi-GRU + MHA": 94.93,
    },
}  # fmt: skip
# Paper 2, table 7; MAE and Corr are not percentages.
SENTIMENT = {
    "CH-SIMS": {"acc2": 88.43, "f1": 87.97, "mae": 0.642, "corr": 0.578, "acc5": 76.19},
    "MOSI": {"acc2": 86.29, "f1": 86.31, "mae": 0.968, "corr": 0.657, "acc5": 72.12},
}
# Paper 2, one-way analysis of variance, p < 0.05: F and its degrees of freedom.
ANOVA = {"IEMOCAP": (8.4174, (1, 198)), "Emo-DB": (10.0243, (1, 698))}

# Inconsistencies in paper 2's numbers, printed beside every comparison with them.
HEAD_8 = "Table 3 gives 8 heads 89.89 on IEMOCAP, above the 81.04 that the paper calls its best there."
ABOVE_BOTH = "In table 4 the accuracy on Emo-DB, 94.93, is above both precision and recall, 80.57 and 86.20."
MISPLACED = (
    "Table 5's IEMOCAP column also holds fear, disgust and boredom, which are Emo-DB's classes; its Emo-DB column "
    "has four numbers, taken here in the order of neutral, anger, happiness, sadness."
)
COUNTS = (
    "Table 1 lists 100 utterances for every emotion, but Emo-DB has 46 of disgust, 81 of boredom, 69 of fear and 62 "
    "of sadness: only oversampling could reach it."
)
GAIN = "The gain over Bi-GRU is printed as 4.40, where 81.04 − 77.01 is 4.03."
FREEDOM = "The degrees of freedom, (1, 698) and (1, 198), fit neither the corpora nor the folds."

# Notes on each paper, printed beside every comparison with it.
PAPER_1 = (
    "Paper 1 measured CASIA (4 speakers, 6 emotions, 9 600 utterances) by K-fold cross-validation; it gives neither "
    "K nor whether speakers were kept apart. The sizes of the network and of the spectrogram are our reading."
)
PAPER_2 = (
    "Paper 2 measured IEMOCAP (4 emotions) and Emo-DB (7), leaving one speaker out. The sizes, the GRU's update, the "
    "pooling of the frames, a single projection before each head and the target of the L1 loss are our reading."
)
