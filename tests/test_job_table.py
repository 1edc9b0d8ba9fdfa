"""The engine of the table of jobs."""

import threading
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from serving.job_table import open_engine


def test_those_who_make_the_file_together_all_wait_for_it(tmp_path: Path) -> None:
    refused: list[Exception] = []

    def connect(engine: Engine, together: threading.Barrier) -> None:
        together.wait()
        try:
            with engine.begin() as connection:
                connection.exec_driver_sql("SELECT 1")
        except DBAPIError as error:
            refused.append(error)

    for number in range(150):  # without another try, one in 40 of these meets "database is locked" at once
        (tmp_path / str(number)).mkdir()
        together = threading.Barrier(8)
        engines = [open_engine("", str(tmp_path / str(number))) for _ in range(together.parties)]
        threads = [threading.Thread(target=connect, args=(engine, together)) for engine in engines]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for engine in engines:
            engine.dispose()
    assert not refused, refused
