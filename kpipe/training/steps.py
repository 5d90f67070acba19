"""Steps that Keras's `train_step` and `test_step` do not know: in pieces, from features, and with the logits.

A step stays a step: the batch, the schedule, log lines and checkpoints are those of the whole batch.

B batch, P pieces.
"""

import keras
import tensorflow as tf


def train_step(model: keras.Model, batch: tuple[tf.Tensor, ...], *, head: keras.Model | None = None, pieces: int = 1):
    """Do what `model.train_step` does, with the gradients of B / P images at a time.

    The gradients are the mean of those of the pieces, so without batch normalization, which sees one piece at a time,
    the step is that of the whole batch. Dropout draws anew for each piece.

    Args:
        model: compiled; metrics and optimizer are updated.
        batch: (images [B, H, W, C], labels) or (images, labels, sample_weights float32 [B]).
        head: the last layers of the model, where the batch has their input instead of images.
        pieces: P, which divides B.
    """
    batch = [tf.reshape(part, (pieces, part.shape[0] // pieces, *part.shape[1:])) for part in batch]
    variables = model.trainable_variables
    gradients = [tf.zeros(variable.shape, variable.dtype) for variable in variables]
    for piece in tf.range(pieces):
        tf.autograph.experimental.set_loop_options(parallel_iterations=1)  # one piece in memory at a time
        inputs, labels, *weights = (part[piece] for part in batch)
        with tf.GradientTape() as tape:
            loss, _ = _compute_loss(model, head or model, inputs, labels, *weights, training=True)
            scaled = model.optimizer.scale_loss(loss / pieces)
        found = tape.gradient(scaled, variables)
        gradients = [total + gradient for total, gradient in zip(gradients, found, strict=True)]
    model.optimizer.apply(gradients, variables)


def test_step(model: keras.Model, batch: tuple[tf.Tensor, tf.Tensor], *, head: keras.Model | None = None) -> tf.Tensor:
    """Do what `model.test_step` does, and return the logits.

    Args:
        model: compiled; metrics are updated.
        batch: (images [B, H, W, C], labels).
        head: the last layers of the model, where the batch has their input instead of images.
    """
    _, outputs = _compute_loss(model, head or model, *batch, training=False)
    return outputs[0] if isinstance(outputs, list) else outputs  # auxiliary heads come after the logits


def _compute_loss(model: keras.Model, forward: keras.Model, inputs, labels, weights=None, *, training: bool):
    """Return loss and logits of a batch; the loss and the metrics are taken into their means."""
    logits = forward(inputs, training=training)
    loss = model.compute_loss(inputs, labels, logits, weights, training=training)
    [mean_loss] = [metric for metric in model.metrics if metric.name == "loss"]
    # Keras divides a loss by the number of replicas, whose gradients it adds up.
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    mean_loss.update_state(loss * replicas, sample_weight=tf.shape(inputs)[0])
    model.compute_metrics(inputs, labels, logits, weights)
    return loss, logits
