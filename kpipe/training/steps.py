"""One step of training or evaluation: what Keras's `train_step` and `test_step` do, and what they leave out.

That is: a batch in pieces, features instead of images, the norm of the gradient, and the logits. A step in pieces stays
a step: the schedule, log lines and checkpoints are those of the whole batch.

B batch, K classes, P pieces.
"""

import keras
import tensorflow as tf

from kpipe.training.cpu_layers import faster_on_cpu


def train_step(
    model: keras.Model,
    batch: tuple[tf.Tensor, ...],
    *,
    head: keras.Model | None = None,
    pieces: int = 1,
    measures: tf.Tensor,
) -> tf.Tensor:
    """Do what `model.train_step` does, with the gradients of B / P images at a time; return the norm of the gradient.

    The gradients are the mean of those of the pieces, so without batch normalization, which sees one piece at a time,
    the step is that of the whole batch. Dropout draws anew for each piece. Under a strategy, a batch is the rows of one
    replica, and the gradients are those of all replicas.

    Args:
        model: compiled; metrics and optimizer are updated.
        batch: (images [B, H, W, C], labels int32 [B] or float32 [B, K]), and sample_weights float32 [B] as a third.
        head: the last layers of the model, where the batch has their input instead of images.
        pieces: P, which divides B.
        measures: bool [], whether the norm is computed; else it is 0.

    Returns:
        The norm of the gradient of the mean loss over all variables, before it is clipped: float32 [].
    """
    variables = model.trainable_variables
    if pieces == 1:
        gradients = _gradients(model, head or model, batch, variables, 1)
    else:
        gradients = _gradients_in_pieces(model, head or model, batch, variables, pieces)
    replicas = tf.distribute.get_replica_context()
    if replicas.num_replicas_in_sync > 1:
        gradients = replicas.all_reduce("sum", gradients)
    norm = tf.cond(measures, lambda: _norm(model.optimizer, gradients), lambda: tf.constant(0.0))
    model.optimizer.apply(gradients, variables)
    return norm


def _norm(optimizer: keras.optimizers.Optimizer, gradients: list[tf.Tensor]) -> tf.Tensor:
    """Return the norm of gradients of a loss that `optimizer` has scaled."""
    return tf.linalg.global_norm(gradients) / optimizer.scale_loss(1.0)


def _gradients_in_pieces(
    model: keras.Model, forward: keras.Model, batch, variables: list[keras.Variable], pieces: int
) -> list[tf.Tensor]:
    batch = [tf.reshape(part, (pieces, part.shape[0] // pieces, *part.shape[1:])) for part in batch]
    gradients = [tf.zeros(variable.shape, variable.dtype) for variable in variables]
    for piece in tf.range(pieces):
        tf.autograph.experimental.set_loop_options(parallel_iterations=1)  # one piece in memory at a time
        found = _gradients(model, forward, [part[piece] for part in batch], variables, pieces)
        gradients = [total + gradient for total, gradient in zip(gradients, found, strict=True)]
    return gradients


def _gradients(
    model: keras.Model, forward: keras.Model, batch, variables: list[keras.Variable], pieces: int
) -> list[tf.Tensor]:
    """Return the gradients of 1 / P of the mean loss of a batch, as the optimizer scales it."""
    with tf.GradientTape() as tape, faster_on_cpu(forward):
        loss, _ = _compute_loss(model, forward, *batch, training=True)
        scaled = model.optimizer.scale_loss(loss / pieces if pieces > 1 else loss)
    return tape.gradient(scaled, [variable.value for variable in variables])


def test_step(model: keras.Model, batch: tuple[tf.Tensor, tf.Tensor], *, head: keras.Model | None = None) -> tf.Tensor:
    """Do what `model.test_step` does, and return the logits float32 [B, K].

    Args:
        model: compiled; metrics are updated.
        batch: (images [B, H, W, C], labels int32 [B] or float32 [B, K]).
        head: the last layers of the model, where the batch has their input instead of images.
    """
    _, outputs = _compute_loss(model, head or model, *batch, training=False)
    return outputs[0] if isinstance(outputs, list) else outputs  # auxiliary heads come after the logits


def _compute_loss(model: keras.Model, forward: keras.Model, inputs, labels, weights=None, *, training: bool):
    """Return loss and outputs of a batch, and update the model's mean loss and metrics."""
    logits = forward(inputs, training=training)
    loss = model.compute_loss(inputs, labels, logits, weights, training=training)
    [mean_loss] = [metric for metric in model.metrics if metric.name == "loss"]
    # Keras divides a loss by the number of replicas, whose gradients it adds up.
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    mean_loss.update_state(loss * replicas, sample_weight=tf.shape(inputs)[0])
    model.compute_metrics(inputs, labels, logits, weights)
    return loss, logits
