"""Where an ONNX graph has weights outside itself: read from the file, without the onnx package and without the weights."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message

# The part of onnx.proto3 through which a tensor can be reached (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3):
# message → field → number and type. Whatever is not named here is skipped by the parser.
_MESSAGES: dict[str, dict[str, tuple[int, str]]] = {
    "Model": {"graph": (7, "Graph"), "training_info": (20, "Training"), "functions": (25, "Function")},
    "Training": {"initialization": (1, "Graph"), "algorithm": (2, "Graph")},
    "Graph": {"node": (1, "Node"), "initializer": (5, "Tensor"), "sparse_initializer": (15, "SparseTensor")},
    "Function": {"node": (7, "Node"), "attribute_proto": (11, "Attribute")},
    "Node": {"attribute": (5, "Attribute")},
    "Attribute": {
        "t": (5, "Tensor"),
        "g": (6, "Graph"),
        "tensors": (10, "Tensor"),
        "graphs": (11, "Graph"),
        "sparse_tensor": (22, "SparseTensor"),
        "sparse_tensors": (23, "SparseTensor"),
    },
    "SparseTensor": {"values": (1, "Tensor"), "indices": (2, "Tensor")},
    "Tensor": {"external_data": (13, "Entry")},
    "Entry": {"key": (1, "bytes"), "value": (2, "bytes")},
}


def external_locations(graph: Path) -> list[str]:
    """The places of external data that any tensor of a graph names, as they are written there, sorted.

    Args:
        graph: an .onnx file.

    Raises:
        ValueError: it is no ONNX graph, or a place is no text.
    """
    model = _model_class()()
    try:
        model.ParseFromString(graph.read_bytes())
    except DecodeError as error:
        raise ValueError("it is no ONNX graph") from error
    return sorted({location.decode() for location in _locations(model)})


def _locations(message: Message) -> Iterator[bytes]:
    for field, value in message.ListFields():
        if field.name == "external_data":
            yield from (entry.value for entry in value if entry.key == b"location")
        elif field.message_type is not None:
            for inner in value:
                yield from _locations(inner)


@cache
def _model_class() -> type[Any]:
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="external_data.proto", package="external_data", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            if kind == "bytes":
                message.field.add(name=field, number=number, type=kinds.TYPE_BYTES, label=kinds.LABEL_OPTIONAL)
            else:  # repeated everywhere: of a field that is not, every occurrence is then seen
                message.field.add(
                    name=field,
                    number=number,
                    type=kinds.TYPE_MESSAGE,
                    label=kinds.LABEL_REPEATED,
                    type_name=f".external_data.{kind}",
                )
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("external_data.Model"))
