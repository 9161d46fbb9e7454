"""Event files of TensorBoard, read as it reads them."""

from pathlib import Path

from tensorboardX.proto.event_pb2 import Event, SessionLog


def events(file: Path):
    """The records of an event file: length (8 bytes), its checksum (4), the event, its checksum (4)."""
    data, place = file.read_bytes(), 0
    while place < len(data):
        size = int.from_bytes(data[place : place + 8], "little")
        yield Event.FromString(data[place + 12 : place + 12 + size])
        place += size + 16


def curves(folder: Path) -> dict[str, dict[int, float]]:
    """{tag: {step: value}}; a session that starts at a step takes back what stands from that step on, as TensorBoard does."""
    found: dict[str, dict[int, float]] = {}
    for file in sorted(folder.glob("events.*")):
        for event in events(file):
            if event.session_log.status == SessionLog.START:
                for tag, values in found.items():
                    found[tag] = {step: value for step, value in values.items() if step < event.step}
            for value in event.summary.value:
                assert event.step not in found.get(value.tag, {}), "a point twice"
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return {tag: values for tag, values in found.items() if values}


def without_clock(found: dict[str, dict[int, float]]) -> dict[str, dict[int, float]]:
    """Without the values that differ from run to run."""
    return {tag: values for tag, values in found.items() if tag not in ("tokens_per_second", "seconds")}
