"""Sources of frames: what is found, what is skipped, and how streams end."""

from __future__ import annotations

import functools
import http.server
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from data.decoding.images import find_images
from data.sources import streams
from data.sources.files import FileSource, is_stream_address, open_source
from data.sources.frames import usable_fps
from data.sources.streams import StreamReader, StreamSource
from utils.errors import UserError
from utils.logging import LOGGER


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    LOGGER.propagate = True
    caplog.set_level(logging.WARNING, logger=LOGGER.name)
    return lambda: [record.getMessage() for record in caplog.records]


def write_image(path: Path, value: int = 0, hw: tuple[int, int] = (20, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((*hw, 3), value, np.uint8))
    return path


def write_video(path: Path, num_frames: int = 7, fps: float = 12.0) -> Path:
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), fps, (64, 48))
    for i in range(num_frames):
        video.write(np.full((48, 64, 3), 30 * i, np.uint8))
    video.release()
    return path


# -- files -------------------------------------------------------------------------------------------------------------


def test_one_image(tmp_path: Path) -> None:
    image = np.zeros((20, 30, 3), np.uint8)
    image[:, :, 0] = 200  # blue comes first
    cv2.imwrite(str(tmp_path / "a.png"), image)
    source = open_source(tmp_path / "a.png")
    assert source.total == 1 and not source.is_stream
    (frame,) = source
    assert np.array_equal(frame.image, image)
    assert (frame.path, frame.index, frame.total, frame.kind) == (str(tmp_path / "a.png"), 0, 1, "image")
    assert len(list(source)) == 1  # files may be read again


def test_grey_images_and_transparent_ones_have_three_channels(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "grey.png"), np.full((4, 5), 7, np.uint8))
    cv2.imwrite(str(tmp_path / "alpha.png"), np.full((4, 5, 4), 7, np.uint8))
    assert [frame.image.shape for frame in open_source(tmp_path)] == [(4, 5, 3), (4, 5, 3)]


def test_a_folder_is_its_own_files_in_order(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.PNG", "sub/c.jpg"):
        write_image(tmp_path / name)
    write_video(tmp_path / "v.avi", 3)
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / "d.jpg").mkdir()
    source = open_source(tmp_path)
    assert source.total == 5  # two images, three frames
    names = [Path(frame.path).name for frame in source]
    assert names == ["a.PNG", "b.jpg", "v.avi", "v.avi", "v.avi"]


def test_globs(tmp_path: Path) -> None:
    for name in ("a/1.jpg", "b/2.jpg", "b/3.txt"):
        if name.endswith("jpg"):
            write_image(tmp_path / name)
        else:
            (tmp_path / name).write_text("x")
    assert [Path(f.path).name for f in open_source(str(tmp_path / "*" / "*"))] == ["1.jpg", "2.jpg"]
    assert [Path(f.path).name for f in open_source(f"{tmp_path}/**/*.jpg")] == ["1.jpg", "2.jpg"]
    with pytest.raises(UserError, match="no images or videos match"):
        open_source(f"{tmp_path}/*.bmp")


def test_a_name_that_looks_like_a_glob(tmp_path: Path) -> None:
    path = write_image(tmp_path / "photo[1].jpg")
    assert [frame.path for frame in open_source(path)] == [str(path)]


def test_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = write_image(tmp_path / "a.jpg"), write_image(tmp_path / "lists" / "b.jpg")
    listing = tmp_path / "lists" / "x.txt"
    listing.write_text(f"# images\n{first}\n\n./b.jpg\n")
    assert [Path(frame.path).resolve() for frame in open_source(listing)] == [first, second]
    third = write_image(tmp_path / "lists" / "#c.jpg")
    listing.write_text(f"{first}\n././b.jpg\n#c.jpg\n#d.jpg\n")
    assert [Path(frame.path).resolve() for frame in open_source(listing)] == [first, second, third]
    listing.write_text("\n# nothing\n")
    with pytest.raises(UserError, match="is empty"):
        open_source(listing)


def test_videos_count_their_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.avi", 7, 12.0)
    source = open_source(path)
    frames = list(source)
    assert source.total == len(frames) == 7
    assert [frame.index for frame in frames] == list(range(7))
    assert {(frame.total, frame.kind, frame.fps) for frame in frames} == {(7, "video", 12.0)}
    assert [round(frame.image.mean() / 30) for frame in frames] == list(range(7))


def test_video_stride(tmp_path: Path) -> None:
    source = open_source(write_video(tmp_path / "v.avi", 7, 12.0), vid_stride=3)
    frames = list(source)
    assert source.total == 3
    assert [frame.index for frame in frames] == [0, 3, 6]
    assert [round(frame.image.mean() / 30) for frame in frames] == [0, 3, 6]
    assert frames[0].fps == 4.0  # what is written from it lasts as long as the original
    with pytest.raises(UserError, match="--vid-stride must be at least 1, got 0"):
        open_source(tmp_path / "v.avi", vid_stride=0)


def test_unreadable_files_are_one_line_each(tmp_path: Path, warnings: Callable[[], list[str]]) -> None:
    write_image(tmp_path / "good.jpg")
    (tmp_path / "bad.jpg").write_bytes(b"not a picture")
    (tmp_path / "bad.mp4").write_bytes(b"not a video")
    (tmp_path / "empty.png").write_bytes(b"")
    listing = tmp_path / "all.txt"
    listing.write_text("bad.jpg\nbad.mp4\nempty.png\ngood.jpg\nmissing.jpg\nmissing.mp4\n")
    source = open_source(listing)
    assert [Path(frame.path).name for frame in source] == ["good.jpg"]
    messages = warnings()
    assert [Path(path).name for path in source.skipped] == [
        "bad.jpg", "bad.mp4", "empty.png", "missing.jpg", "missing.mp4"
    ]  # fmt: skip
    assert len(messages) == 5 and all("\n" not in message for message in messages)
    assert "not a readable image" in messages[0] and "does not exist" in messages[4]


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match=r"bad\.jpg' could not be read"):
        list(open_source(tmp_path))
    (tmp_path / "bad2.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match="2 files could not be read"):
        list(open_source(tmp_path))


def test_nothing_found(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no images or videos in the folder .*; check the path"):
        open_source(tmp_path)
    write_image(tmp_path / "sub" / "a.jpg")
    with pytest.raises(UserError, match=r"for sub-folders use '.*/\*\*/\*\.jpg'"):
        open_source(tmp_path)
    with pytest.raises(UserError, match="does not exist; check the path"):
        open_source(tmp_path / "none.jpg")
    (tmp_path / "a.pdf").write_text("x")
    with pytest.raises(UserError, match=r"neither an image nor a video by its suffix; known: \.asf"):
        open_source(tmp_path / "a.pdf")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", True),
        ("12", True),
        ("rtsp://a/b", True),
        ("HTTP://a/b", True),
        ("a.jpg", False),
        ("-1", False),
        ("", False),
    ],
)
def test_what_is_a_stream(text: str, expected: bool) -> None:
    assert is_stream_address(text) is expected


@pytest.mark.parametrize(("fps", "expected"), [(25.0, 25.0), (0.0, 30.0), (float("nan"), 30.0), (90_000.0, 30.0)])
def test_frame_rates(fps: float, expected: float) -> None:
    assert usable_fps(fps) == expected


# -- streams -----------------------------------------------------------------------------------------------------------


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


class FakeCapture:
    """A camera that gives numbered frames and then fails; `pause` seconds between frames."""

    made: list[FakeCapture] = []

    def __init__(self, address: str, num_frames: int = 5, pause: float = 0.0, opens: bool = True) -> None:
        self.address, self.num_frames, self.pause, self.opens = address, num_frames, pause, opens
        self.frame, self.released = -1, False
        FakeCapture.made.append(self)

    def isOpened(self) -> bool:
        return self.opens

    def get(self, _: int) -> float:
        return 20.0

    def grab(self) -> bool:
        time.sleep(self.pause)
        self.frame += 1
        return self.frame < self.num_frames and not self.released

    def retrieve(self) -> tuple[bool, np.ndarray]:
        return True, np.full((2, 2, 3), self.frame, np.uint8)

    def release(self) -> None:
        self.released = True


@pytest.fixture(autouse=True)
def all_released() -> object:
    FakeCapture.made = []
    yield
    assert all(capture.released for capture in FakeCapture.made)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("stream")]


def test_a_slow_stream_gives_every_frame_and_ends() -> None:
    source = StreamSource(["0"], opener=lambda address: FakeCapture(address, 5, pause=0.05))
    frames = list(source)
    assert source.is_stream and source.total is None
    assert [frame.index for frame in frames] == [0, 1, 2, 3, 4]
    assert [int(frame.image[0, 0, 0]) for frame in frames] == [0, 1, 2, 3, 4]
    assert {(frame.kind, frame.path, frame.total, frame.fps) for frame in frames} == {("stream", "0", 0, 20.0)}


def test_a_slow_reader_gets_the_newest_frame() -> None:
    """A stream of 40 frames in 0.2 s, read every 0.1 s: a few frames, in order, ending with the last."""
    indices = []
    for frame in StreamSource(["0"], opener=lambda address: FakeCapture(address, 40, pause=0.005)):
        indices.append(frame.index)
        time.sleep(0.1)
    assert indices == sorted(set(indices)) and len(indices) < 10
    assert indices[-1] == 39


def test_stride_of_a_stream() -> None:
    frames = list(StreamSource(["0"], 2, opener=lambda address: FakeCapture(address, 6, pause=0.05)))
    assert [frame.index for frame in frames] == [0, 2, 4]
    assert frames[0].fps == 10.0


def test_several_streams_end_each_for_itself() -> None:
    source = StreamSource(["0", "1"], opener=lambda address: FakeCapture(address, 3 + 3 * int(address), pause=0.05))
    seen = [(frame.path, frame.index) for frame in source]
    assert [index for path, index in seen if path == "0"] == [0, 1, 2]
    assert [index for path, index in seen if path == "1"] == [0, 1, 2, 3, 4, 5]


def test_leaving_the_loop_stops_the_threads() -> None:
    source = StreamSource(["0"], opener=lambda address: FakeCapture(address, 10**9, pause=0.01))
    for _ in source:
        break
    source.close()
    source.close()


def test_an_unused_source_is_released() -> None:
    StreamSource(["0", "1"], opener=FakeCapture).close()


def test_a_stream_that_does_not_open() -> None:
    """The ones that did open are released."""
    with pytest.raises(UserError, match="camera 1 does not open"):
        StreamSource(["0", "1"], opener=lambda address: FakeCapture(address, opens=address == "0"))
    with pytest.raises(UserError, match=r"stream 'rtsp://a' does not open"):
        StreamReader("rtsp://a", opener=lambda address: FakeCapture(address, opens=False))


def test_a_lost_live_stream_is_opened_again(warnings: Callable[[], list[str]]) -> None:
    changed = threading.Condition()
    opened = iter([True, False, True, False, False, False])
    reader = StreamReader("rtsp://a", 1, lambda address: FakeCapture(address, 2, opens=next(opened)), reconnect_pause=0)
    reader.start(changed)
    with changed:
        assert changed.wait_for(lambda: reader.ended, timeout=5)
    messages = warnings()
    # lost; first attempt fails, second gives frames again; lost; three attempts fail
    assert sum("opening it again" in message for message in messages) == 5
    assert messages[-1] == "rtsp://a: gave up"
    reader.close()


def test_an_address_over_http_simply_ends(warnings: Callable[[], list[str]]) -> None:
    list(StreamSource(["http://a/x.mp4"], opener=lambda address: FakeCapture(address, 2)))
    assert warnings() == [] and len(FakeCapture.made) == 1


def test_lists_of_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "open_capture", FakeCapture)
    for name in ("cameras.streams", "cameras.txt"):
        (tmp_path / name).write_text("0\nrtsp://a\n")
        source = open_source(tmp_path / name)
        assert source.is_stream
        source.close()
        assert [capture.address for capture in FakeCapture.made[-2:]] == ["0", "rtsp://a"]
    assert isinstance(open_source(write_image(tmp_path / "a.jpg")), FileSource)


def test_a_real_network_stream(tmp_path: Path) -> None:
    write_video(tmp_path / "v.avi", 6)
    handler = functools.partial(QuietHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            frames = list(open_source(f"http://127.0.0.1:{server.server_port}/v.avi"))
            with pytest.raises(UserError, match="does not open"):
                open_source(f"http://127.0.0.1:{server.server_port}/none.avi")
        finally:
            server.shutdown()
            thread.join()
    assert frames[-1].index == 5 and frames[-1].image.shape == (48, 64, 3)


def test_a_silent_stream_is_given_up(monkeypatch: pytest.MonkeyPatch, warnings: Callable[[], list[str]]) -> None:
    monkeypatch.setattr(streams, "OPEN_TIMEOUT", 0.1)
    source = StreamSource(["0"], opener=lambda address: FakeCapture(address, 1, pause=1.0))
    assert list(source) == []
    assert any("no frame for" in message for message in warnings())
    time.sleep(1.2)  # the thread is still inside the blocking read of this camera


# -- names and lists as other systems write them -----------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_lists_of_any_system(tmp_path: Path, encoding: str, ending: str, warnings: Callable[[], list[str]]) -> None:
    images = [write_image(tmp_path / name) for name in ("a.png", "图.png", "b c.png")]
    text = ending.join(["", *map(str, images), "./a.png", "b c.png", ""])
    (tmp_path / "list.txt").write_bytes(text.encode(encoding))
    expected = [*map(str, images), str(images[0]), str(images[2])]
    assert [frame.path for frame in open_source(tmp_path / "list.txt")] == expected
    assert find_images([tmp_path / "list.txt"]) == (sorted(map(str, images)), []), "training reads the same"
    assert not warnings()


def test_a_list_may_name_files_that_are_not_in_utf8(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.png"
    shutil.copy(write_image(tmp_path / "a.png"), path)
    (tmp_path / "list.txt").write_bytes(path + b"\n")
    assert [os.fsencode(frame.path) for frame in open_source(tmp_path / "list.txt")] == [path]


def test_a_list_without_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes("a.png\n".encode("utf-16-le"))
    for read in (open_source, lambda path: find_images([path])):
        with pytest.raises(UserError, match="is no text in UTF-8; save it as UTF-8"):
            read(tmp_path / "list.txt")


def test_a_folder_may_be_called_like_a_camera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "2024" / "a.png")
    assert [frame.path for frame in open_source("2024")] == ["2024/a.png"]
    with pytest.raises(UserError, match="'99999999' does not exist"):
        open_source("99999999")  # no number of a camera


def test_brackets_in_a_real_name_and_links_that_lead_back(tmp_path: Path) -> None:
    write_image(tmp_path / "trip [1]" / "a.png")
    write_image(tmp_path / "trip [1]" / "deep" / "b.png")
    write_image(tmp_path / "trip [1]" / ".hidden" / "c.png")
    (tmp_path / "trip [1]" / "deep" / "back").symlink_to(tmp_path / "trip [1]")
    (tmp_path / "trip [1]" / "again").symlink_to(tmp_path / "trip [1]" / "deep")
    assert [Path(frame.path).name for frame in open_source(f"{tmp_path}/trip [1]/*.png")] == ["a.png"]
    for pattern in ("**/*.png", "**/**/*.png", "*/**/*"):
        found = [frame.path for frame in open_source(f"{tmp_path}/trip [1]/{pattern}")]
        assert len(found) == len(set(map(os.path.realpath, found))), "each file once"
        assert f"{tmp_path}/trip [1]/deep/b.png" in found
        assert not any(".hidden" in path for path in found)


def test_what_is_no_file_is_skipped_with_a_word(tmp_path: Path, warnings: Callable[[], list[str]]) -> None:
    write_image(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("gone.png")
    os.mkfifo(tmp_path / "c.png")
    os.mkfifo(tmp_path / "d.mp4")
    assert [Path(frame.path).name for frame in open_source(tmp_path)] == ["a.png"]
    told = [line.rpartition(": ")[2] for line in warnings()]
    assert told == ["a link that leads nowhere", "not a regular file", "not a regular file"]
    with pytest.raises(UserError, match="is not a regular file"):
        open_source(tmp_path / "c.png")


def test_a_video_whose_name_is_not_utf8(tmp_path: Path) -> None:
    path = os.fsencode(write_video(tmp_path / "v.avi", 3))
    os.rename(path, path.replace(b"v.avi", b"v\xe9.avi"))
    assert [frame.index for frame in open_source(tmp_path)] == [0, 1, 2]


@pytest.mark.parametrize("spec", ["", " ", "ftp://host/a.jpg", "x" * 5000, "~nobody-of-this-name/a.png", "/dev/null"])
def test_no_source_at_all_is_one_line(spec: str) -> None:
    with pytest.raises(UserError) as error:
        open_source(spec)
    assert len(str(error.value)) < 600 and "\n" not in str(error.value)
