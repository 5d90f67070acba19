"""SGD, Adam and AdamW with one operation of TensorFlow for the whole update of a variable.

Keras makes an update out of up to twelve operations. Each of them reads and writes arrays as large as the variable,
which takes much of a step where the dense layers are large, and each has to be started, which takes much of the step of
a small network. The numbers are the same but for rounding; those of SGD are the same to the last bit.
"""

import keras
import tensorflow as tf


class SGD(keras.optimizers.SGD):
    """`keras.optimizers.SGD`: `v <- momentum x v - rate x gradient; w <- w + v`."""

    def update_step(self, gradient, variable, learning_rate):
        if isinstance(gradient, tf.IndexedSlices):
            super().update_step(gradient, variable, learning_rate)
            return
        rate, gradient = (tf.cast(number, variable.dtype) for number in (learning_rate, gradient))
        if not self.momentum:
            tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=rate, delta=gradient)
            return
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=variable.handle,
            accum=_handle(self.momentums[self._get_variable_index(variable)]),
            lr=rate,
            grad=gradient,
            momentum=tf.cast(self.momentum, variable.dtype),
            use_nesterov=self.nesterov,
        )


class Adam(keras.optimizers.Adam):
    """`keras.optimizers.Adam`: Kingma and Ba 2015, section 2, in the efficient order of its last paragraph."""

    def update_step(self, gradient, variable, learning_rate):
        if self.amsgrad or isinstance(gradient, tf.IndexedSlices):
            super().update_step(gradient, variable, learning_rate)
            return
        index, step = self._get_variable_index(variable), tf.cast(self.iterations + 1, variable.dtype)
        rate, gradient, beta_1, beta_2, epsilon = (
            tf.cast(number, variable.dtype)
            for number in (learning_rate, gradient, self.beta_1, self.beta_2, self.epsilon)
        )
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=_handle(self._momentums[index]),
            v=_handle(self._velocities[index]),
            beta1_power=beta_1**step,
            beta2_power=beta_2**step,
            lr=rate,
            beta1=beta_1,
            beta2=beta_2,
            epsilon=epsilon,
            grad=gradient,
        )


class AdamW(Adam, keras.optimizers.AdamW):
    """`keras.optimizers.AdamW`: Loshchilov and Hutter 2019. The decay is Keras's own, apart from the update."""


def _handle(variable: keras.Variable) -> tf.Tensor:
    """Return the variable's handle; under a strategy that of the replica which is updated."""
    return variable.value.handle
