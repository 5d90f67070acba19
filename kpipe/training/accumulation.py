"""Gradient accumulation: a step whose batch is too large for the memory is computed in pieces.

A step stays a step: the batch, the schedule, log lines and checkpoints are those of the whole batch.

B batch, P pieces.
"""

import keras
import tensorflow as tf


def train_in_pieces(model: keras.Model, batch: tuple[tf.Tensor, ...], pieces: int) -> None:
    """Do what `model.train_step` does, with the gradients of B / P images at a time.

    The gradients are the mean of those of the pieces, so without batch normalization, which sees one piece at a time,
    the step is that of the whole batch. Dropout draws anew for each piece.

    Args:
        model: compiled; metrics and optimizer are updated.
        batch: (images [B, H, W, C], labels) or (images, labels, sample_weights float32 [B]).
        pieces: P, which divides B.
    """
    batch = [tf.reshape(part, (pieces, part.shape[0] // pieces, *part.shape[1:])) for part in batch]
    variables = model.trainable_variables
    [mean_loss] = [metric for metric in model.metrics if metric.name == "loss"]
    gradients = [tf.zeros(variable.shape, variable.dtype) for variable in variables]
    for piece in tf.range(pieces):
        tf.autograph.experimental.set_loop_options(parallel_iterations=1)  # one piece in memory at a time
        images, labels, *weights = (part[piece] for part in batch)
        weights = weights[0] if weights else None
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            loss = model.compute_loss(images, labels, logits, weights, training=True)
            scaled = model.optimizer.scale_loss(loss / pieces)
        mean_loss.update_state(loss, sample_weight=tf.shape(images)[0])
        model.compute_metrics(images, labels, logits, weights)
        found = tape.gradient(scaled, variables)
        gradients = [total + gradient for total, gradient in zip(gradients, found, strict=True)]
    model.optimizer.apply(gradients, variables)
