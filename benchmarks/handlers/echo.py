"""A module that does nothing: what it costs is handlergen."""


def predict(inputs):
    return inputs
