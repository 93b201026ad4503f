"""The tasks of the quality benchmark by name, and the margins of non-inferiority, set before any run."""

from __future__ import annotations

from typing import NamedTuple


class Measure(NamedTuple):
    """How a task is judged.

    Attributes:
        metric: the held-out error, by name; the smaller the better.
        margin: how much worse than fixed 64 still counts as no worse, relative.
    """

    title: str
    metric: str
    margin: float


MEASURES = {
    "flights": Measure("flights, MLP, AdamW (beta2 .99)", "RMSE, minutes", 0.01),
    "flights_999": Measure("flights, MLP, AdamW (beta2 .999)", "RMSE, minutes", 0.01),
    "movielens": Measure("MovieLens, dot product, AdamW (beta2 .99)", "MSE, stars²", 0.01),
    "mnist_adam": Measure("MNIST, CNN, Adam (beta2 .999)", "NLL, nats", 0.05),
    "mnist_adam_99": Measure("MNIST, CNN, Adam (beta2 .99)", "NLL, nats", 0.05),
    "mnist_sgd": Measure("MNIST, CNN, SGD with momentum", "NLL, nats", 0.05),
    "mnist_bn": Measure("MNIST, CNN with BatchNorm, Adam (beta2 .999)", "NLL, nats", 0.05),
    "text": Measure("characters, transformer, AdamW (beta2 .99)", "log perplexity, nats", 0.01),
}

# The same for the tasks of untuned/. The margin is 5 % where NLL is below .15 at the learning rate chosen for fixed 64.
UNTUNED = {
    "resnet": Measure("MNIST, residual net with BatchNorm, augmented, SGD", "NLL, nats", 0.05),
    "vit": Measure("MNIST, vision transformer, AdamW", "NLL, nats", 0.01),
    "denoising": Measure("MNIST, denoising, Adam", "MSE", 0.01),
    "bag_of_words": Measure("reviews, bag of words, Adagrad", "NLL, nats", 0.01),
    "census_nadam": Measure("census, MLP, NAdam", "NLL, nats", 0.01),
    "housing_constant": Measure("housing, MLP, SGD at a constant rate", "RMSE", 0.01),
    "mixer_lion": Measure("MNIST, MLP-Mixer, Lion", "NLL, nats", 0.01),
    "wrong_labels": Measure("MNIST, one label in five wrong, MLP, AdamW", "NLL, nats", 0.01),
    "short": Measure("digits, MLP, Adam, 110 steps", "NLL, nats", 0.05),
    "letters": Measure("reviews, letters, transformer, AdamW (beta2 .95)", "log perplexity, nats", 0.01),
    "gru_departments": Measure("reviews, GRU on departments, Adam", "NLL, nats", 0.01),
    "mlp_rmsprop": Measure("MNIST, MLP, RMSprop", "NLL, nats", 0.05),
    "longer": Measure("MNIST, MLP, AdamW, 2,814 steps", "NLL, nats", 0.05),
    "gru": Measure("reviews, GRU, Adam", "NLL, nats", 0.01),
    "muon": Measure("MNIST, MLP, Muon with Adam", "NLL, nats", 0.05),
    "cnn_rmsprop": Measure("MNIST, CNN, RMSprop", "NLL, nats", 0.05),
    "logistic_constant": Measure("census, logistic regression, SGD at a constant rate", "NLL, nats", 0.01),
    "long": Measure("MNIST, MLP, AdamW, 3,752 steps", "NLL, nats", 0.05),
    "fine_tuned": Measure("MNIST, body frozen and at a tenth of the rate, AdamW", "NLL, nats", 0.05),
    "autoencoder": Measure("MNIST, variational autoencoder, Adam", "negative ELBO, nats", 0.01),
    "short_sgd": Measure("digits, CNN, SGD, 154 steps", "NLL, nats", 0.01),
    "neighbours": Measure("reviews, skip-gram, Adam", "NLL, nats", 0.01),
    "friedman": Measure("Friedman's function, MLP, StableAdamW", "RMSE", 0.01),
    "segmented_group_norm": Measure("MNIST, segmentation, U-Net with GroupNorm, AdamW", "NLL of a pixel, nats", 0.01),
    "clusters_smoothed": Measure("Guyon's clusters, MLP, smoothed labels, SGD with decay", "NLL, nats", 0.01),
    "census_outputs": Measure("census, MLP of three outputs, Huber, Adam (AMSGrad)", "Huber loss", 0.01),
    "protein_weighted": Measure("proteins, one in 112, weighted, half dropped, Adam", "weighted NLL, nats", 0.05),
    "words_lstm": Measure("reviews, words, LSTM, Adam at a constant rate", "log perplexity, nats", 0.01),
    "siamese": Measure("MNIST, siamese CNN, contrastive, Adamax", "contrastive loss", 0.01),
    "distilled": Measure("MNIST, student of a CNN, SGD in steps", "KL divergence", 0.01),
    "weather_quantiles": Measure("weather, dilated convolutions, quantiles, Adam", "pinball loss", 0.01),
    "waveform_radam": Measure("Breiman's waveforms, 1D CNN, RAdam", "NLL, nats", 0.01),
    "rating_fine_tuned": Measure("reviews, encoder fine-tuned on ratings, AdamW", "NLL, nats", 0.01),
    "overlaid_convnext": Measure("MNIST, two digits overlaid, ConvNeXt, AdamW", "NLL of a digit, nats", 0.01),
    "corrected_letters": Measure("reviews, letters put right, encoder and decoder, Adam", "log perplexity, nats", 0.01),
    "graph_groups": Measure("block model, graph net, Lion", "NLL of a node, nats", 0.01),
    "point_clouds": Measure("MNIST, points, PointNet with BatchNorm, SGD in steps", "NLL, nats", 0.01),
    "words_llama": Measure("reviews, words, decoder with tied head, AdamW (beta2 .95)", "log perplexity, nats", 0.01),
    "preferred_films": Measure("MovieLens, which of two, factorization machine, Adagrad", "NLL, nats", 0.01),
    "lines_ctc": Measure("MNIST, lines, convolutions and LSTM, CTC, RMSprop", "NLL of a digit, nats", 0.01),
    "lifetimes_experts": Measure("lifetimes, experts, hazards, Schedule-Free AdamW", "NLL, nats", 0.01),
    "painted_picture": Measure("a picture, Fourier features, Adam (beta2 .99)", "RMSE", 0.01),
    "feedback_counts": Measure("reviews, text CNN, negative binomial, Adafactor", "NLL, nats", 0.01),
}
