"""Turns of a conversation, as a record holds them."""


def turn(role, content="x", **more) -> dict:
    return {"role": role, "content": content, **more}


def said(*contents: str, first: str = "user") -> list[dict]:
    """Turns of the user and the assistant by turns, after one of the system if that is first."""
    roles = ["user", "assistant"] if first == "user" else ["system", "user", "assistant"]
    return [{"role": roles[i] if i < len(roles) else roles[-2 + (i - len(roles)) % 2], "content": content}
            for i, content in enumerate(contents)]  # fmt: skip


EARLIER = [["q", "a"], ["r", "b"]]
"""A history of two questions and their answers."""
