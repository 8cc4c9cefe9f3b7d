"""A message of a worker counts when its whole line is there."""

import sys
import textwrap

import dagster as dg

from resources.workers.whole_lines import WholeLineReader, whole_lines


def test_lines_that_are_written_in_parts_are_read_whole(tmp_path):
    file = tmp_path / "messages"
    file.write_text("")
    parts, read = ["a", "b\nc", "", "d\n", "\n", "ü", "e\nhalf"], []

    def stop():
        """Before each look, the writer has come a part further."""
        if not parts:
            return True
        with file.open("a", encoding="utf-8") as writer:
            writer.write(parts.pop(0))
        return False

    read = list(whole_lines(str(file), stop))
    assert read == ["ab\n", "cd\n", "\n", "üe\n"]


def test_a_worker_that_is_interrupted_within_a_line_is_heard_to_the_end(tmp_path):
    worker = tmp_path / "worker.py"
    worker.write_text(
        textwrap.dedent("""
            import json, time
            from dagster_pipes import open_dagster_pipes, PipesContext

            with open_dagster_pipes() as pipes:
                channel = pipes._message_channel
                def write_in_two(message):
                    line = json.dumps(message) + "\\n"
                    with open(channel._path, "a") as file:
                        for part in (line[:9], line[9:]):
                            file.write(part)
                            file.flush()
                            time.sleep(0.1)
                channel.write_message = write_in_two
                for number in range(3):
                    pipes.report_custom_message({"number": number})
        """)
    )

    @dg.asset
    def told(context: dg.AssetExecutionContext):
        client = dg.PipesSubprocessClient(message_reader=WholeLineReader(str(tmp_path / "messages")))
        done = client.run(command=[sys.executable, str(worker)], context=context)
        messages = [message["number"] for message in done.get_custom_messages()]
        return dg.MaterializeResult(metadata={"messages": messages})

    result = dg.materialize([told])
    (event,) = result.get_asset_materialization_events()
    assert event.materialization.metadata["messages"].value == [0, 1, 2]
