"""LeNet-5 on MNIST as one writes it with Keras: trained until its accuracy on the test images is high enough.

    python benchmarks/mnist_keras.py [--target ACCURACY] [--epochs MOST] [--seed N]

It prints a line for each epoch, and at the end one of JSON: `{"epochs", "accuracy"}`.
"""

import argparse
import json

import keras
import tensorflow_datasets as tfds
from keras import layers

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--target", type=float, default=0.99)
parser.add_argument("--epochs", type=int, default=60, help="the most")
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()

keras.utils.set_random_seed(options.seed)
splits = tfds.load("mnist", split=["train", "test"], batch_size=-1, as_supervised=True)
(x_train, y_train), (x_test, y_test) = tfds.as_numpy(splits)
x_train = x_train.astype("float32") / 255
x_test = x_test.astype("float32") / 255

model = keras.Sequential(
    [
        keras.Input((28, 28, 1)),
        layers.Conv2D(6, 5, padding="same", activation="relu"),
        layers.MaxPooling2D(2),
        layers.Conv2D(16, 5, activation="relu"),
        layers.MaxPooling2D(2),
        layers.Flatten(),
        layers.Dense(120, activation="relu"),
        layers.Dense(84, activation="relu"),
        layers.Dense(10, activation="softmax"),
    ]
)
model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])


class StopAtTarget(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        if logs["val_accuracy"] >= options.target:
            self.model.stop_training = True


history = model.fit(
    x_train,
    y_train,
    batch_size=128,
    epochs=options.epochs,
    validation_data=(x_test, y_test),
    callbacks=[StopAtTarget()],
    verbose=2,
)
accuracies = history.history["val_accuracy"]
print(json.dumps({"epochs": len(accuracies), "accuracy": accuracies[-1]}))
