"""The page's first view as people use it: pictures in, what every model makes of them out."""

import re
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, Route, expect

from tests.support.browser import CNN, FC, SERVED, STORE, OpenPage, sample_file
from tests.support.servers import CONVSCOPE, Server, post, started

pytestmark = pytest.mark.slow

DROP = """([bytes, name, type]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([new Uint8Array(bytes)], name, { type }));
  return transfer;
}"""
PASTE = """transfer => {
  const event = new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true });
  document.body.dispatchEvent(event);
}"""

REFUSE = """() => {
  navigator.mediaDevices.getUserMedia = () => Promise.reject(new Error("refused"));
}"""


def card(page: Page, model: str = CNN) -> Locator:
    return page.get_by_role("article", name=model)


def answer(page: Page, model: str = CNN) -> Locator:
    return card(page, model).locator(".answer strong")


def heat_map(page: Page, model: str, label: str) -> Locator:
    return card(page, model).get_by_role("img", name=f"What speaks for {label} in the picture")


def transfer(page: Page, data: bytes, name: str = "x.png", kind: str = "image/png") -> object:
    return page.evaluate_handle(DROP, [list(data), name, kind])


def width_of(image: Locator) -> int:
    """Wait for a picture; 0 if it is broken."""
    return int(image.evaluate("image => image.decode().then(() => image.naturalWidth, () => 0)"))


def test_first_look_shows_what_every_model_makes_of_a_sample(open_page: OpenPage) -> None:
    with open_page() as page:
        expect(answer(page, CNN)).to_have_text("dog")
        expect(card(page, FC).locator(".answer strong")).not_to_be_empty()
        expect(card(page, CNN).locator(".bars li")).to_have_count(10)
        assert width_of(heat_map(page, CNN, "dog")) == 256
        figure = card(page, CNN).get_by_role("figure")
        expect(figure).to_contain_text("Orange: seen alone, this part looks like “dog”")
        seen = page.get_by_role("img", name="The picture in the network's pixels")
        assert width_of(seen) == 32 * 8
        assert page.get_by_role("article").first.get_attribute("aria-label") == CNN


def test_first_look_takes_few_requests_and_bytes(chromium: Browser, server: Server) -> None:
    """With two models; each one adds a prediction and an explanation."""
    context = chromium.new_context()
    page = context.new_page()
    session = context.new_cdp_session(page)
    session.send("Network.enable")
    bodies: list[int] = []
    asked: list[str] = []
    session.on("Network.loadingFinished", lambda event: bodies.append(event["encodedDataLength"]))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(server.url, wait_until="networkidle")
    expect(answer(page, FC)).not_to_be_empty()
    context.close()
    sent = [url for url in asked if not url.startswith("blob:")]
    assert len(sent) <= 19, sent
    assert len(set(sent)) == len(sent), sent
    assert sum(bodies) < 80_000


def test_picture_is_explained_when_its_card_comes_into_view(open_page: OpenPage) -> None:
    """Also while the card above it still waits for its answer."""
    with open_page(width=412) as page:
        expect(heat_map(page, CNN, "dog")).to_be_visible()
        held: list[Route] = []
        page.route(f"**/predict?model={CNN.partition('/')[0]}*", lambda route: held.append(route))
        page.reload()
        expect(answer(page, FC)).not_to_be_empty()
        (waiting,) = held
        waiting.continue_()
        expect(heat_map(page, CNN, "dog")).to_be_visible()
        assert card(page, FC).get_by_role("img").count() == 0
        card(page, FC).scroll_into_view_if_needed()
        expect(card(page, FC).get_by_role("img")).to_be_visible()


def test_predictions_do_not_move_when_the_picture_arrives(open_page: OpenPage) -> None:
    with open_page(width=412) as page:
        picture = page.get_by_alt_text("The picture in the network's pixels")
        expect(picture).to_be_visible()  # no request of this load is still to come
        held: list[Route] = []
        page.route("**/activations?*", lambda route: held.append(route))
        with page.expect_request("**/activations?*"):
            page.reload()
        predictions = page.get_by_role("region", name="Predictions")
        expect(answer(page)).to_have_text("dog")
        before = predictions.bounding_box()
        (activations,) = held
        activations.continue_()
        expect(picture).to_be_visible()
        after = predictions.bounding_box()
        assert before is not None
        assert after is not None
        assert after["y"] == before["y"]


def test_sample_that_is_clicked_is_classified_and_stands_in_the_address(
    open_page: OpenPage,
) -> None:
    with open_page() as page:
        page.get_by_role("button", name="ship", exact=True).click()
        expect(answer(page)).to_have_text("ship")
        assert "sample=ship" in page.url
        page.reload()
        expect(answer(page)).to_have_text("ship")
        page.go_back()
        expect(answer(page)).to_have_text("dog")


def test_probabilities_are_those_of_the_service(open_page: OpenPage) -> None:
    with open_page("?sample=frog") as page:
        expect(answer(page)).to_have_text("frog")
        url = f"{page.url.partition('?')[0]}predict?model={CNN.replace('/', '&version=')}"
        content = sample_file("frog").read_bytes()
        told = post(url, content=content, headers={"Content-Type": "image/png"}).json()
        likely = told["predictions"][0]["probabilities"]
        shown = card(page).locator(".bars li").all_inner_texts()
        assert [re.split(r"\s+", line.strip()) for line in shown] == [
            [label, f"{100 * value:.1f}%"] for label, value in likely.items()
        ]


def test_chosen_file_is_classified(open_page: OpenPage) -> None:
    with open_page() as page:
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name="Choose a picture").click()
        chooser.value.set_files(sample_file("horse"))
        expect(answer(page)).to_have_text("horse")
        expect(page.locator(".seen")).to_contain_text("horse.png")


def test_dropped_picture_is_classified(open_page: OpenPage) -> None:
    with open_page() as page:
        expect(answer(page)).to_have_text("dog")
        data = transfer(page, sample_file("truck").read_bytes(), "my truck.png")
        page.dispatch_event(".picture", "drop", {"dataTransfer": data})
        expect(answer(page)).to_have_text("truck")
        expect(page.locator(".seen")).to_contain_text("my truck.png")


def test_picture_dropped_beside_the_box_is_classified_too(open_page: OpenPage) -> None:
    with open_page() as page:
        expect(answer(page)).to_have_text("dog")
        data = transfer(page, sample_file("truck").read_bytes())
        page.dispatch_event("header", "drop", {"dataTransfer": data})
        expect(answer(page)).to_have_text("truck")


def test_pasted_picture_is_classified(open_page: OpenPage) -> None:
    with open_page() as page:
        expect(answer(page)).to_have_text("dog")
        page.evaluate(PASTE, transfer(page, sample_file("frog").read_bytes()))
        expect(answer(page)).to_have_text("frog")
        expect(page.locator(".seen")).to_contain_text("pasted picture")


def test_picture_from_the_camera_is_classified(open_page: OpenPage) -> None:
    with open_page() as page:
        page.get_by_role("button", name="Take one").click()
        camera = page.get_by_role("dialog", name="Camera")
        camera.locator("video").evaluate(
            "video => video.videoWidth || new Promise(done => (video.onloadeddata = done))"
        )
        camera.get_by_role("button", name="Take it").click()
        expect(camera).to_be_hidden()
        expect(page.locator(".seen")).to_contain_text("picture from the camera")
        expect(card(page).locator(".overlay")).to_be_visible()


def test_camera_that_is_refused_is_said_in_words(open_page: OpenPage) -> None:
    with open_page() as page:
        page.evaluate(REFUSE)
        page.get_by_role("button", name="Take one").click()
        camera = page.get_by_role("dialog", name="Camera")
        expect(camera.get_by_role("alert")).to_contain_text("There is no camera to use: refused")
        page.keyboard.press("Escape")
        expect(camera).to_be_hidden()


def test_class_that_is_clicked_is_explained(open_page: OpenPage) -> None:
    with open_page() as page:
        predicted = heat_map(page, CNN, "dog")
        expect(predicted).to_be_visible()
        before = predicted.get_attribute("src")
        card(page).get_by_role("button", name="cat").click()
        other = heat_map(page, CNN, "cat")
        expect(other).to_be_visible()
        assert other.get_attribute("src") != before
        expect(predicted).to_be_hidden()
        expect(heat_map(page, FC, "cat")).to_be_visible()  # side by side, for the same class
        assert "why=cat" in page.url
        page.reload()
        expect(heat_map(page, CNN, "cat")).to_be_visible()
        page.get_by_role("button", name="ship", exact=True).first.click()
        expect(heat_map(page, CNN, "ship")).to_be_visible()


def test_higher_coverage_gives_a_larger_set(open_page: OpenPage) -> None:
    with open_page() as page:
        members = card(page, FC).locator(".member")
        expect(members.first).to_be_visible()
        few = members.count()
        page.get_by_label("Coverage of the prediction sets").select_option("99%")
        expect(card(page, FC).locator(".set")).to_contain_text("99% set")
        assert members.count() > few
        assert "coverage=0.99" in page.url


def test_picture_of_nothing_it_knows_is_marked(open_page: OpenPage) -> None:
    with open_page() as page:
        expect(answer(page)).to_have_text("dog")
        expect(page.locator(".warning")).to_have_count(0)
        page.evaluate(PASTE, page.evaluate_handle(CHECKERBOARD))
        expect(page.locator(".seen")).to_contain_text("pasted picture")
        expect(card(page).locator(".warning")).to_contain_text("set promise nothing here")


CHECKERBOARD = """async () => {
  const canvas = Object.assign(document.createElement("canvas"), { width: 256, height: 256 });
  const context = canvas.getContext("2d");
  for (let y = 0; y < 32; y++) {
    for (let x = 0; x < 32; x++) {
      context.fillStyle = (x + y) % 2 ? "#ff00ff" : "#00ff00";
      context.fillRect(8 * x, 8 * y, 8, 8);
    }
  }
  const blob = await new Promise((done) => canvas.toBlob(done));
  const transfer = new DataTransfer();
  transfer.items.add(new File([blob], "board.png", { type: "image/png" }));
  return transfer;
}"""


def test_fault_of_a_file_that_was_read_is_shown(open_page: OpenPage, tmp_path: Path) -> None:
    cut = tmp_path / "cut.jpg"
    with Image.open(sample_file("ship")) as picture:
        picture.save(cut, quality=95)
    cut.write_bytes(cut.read_bytes()[:-2])
    with open_page() as page:
        page.get_by_label("Picture file").set_input_files(cut)
        expect(answer(page)).to_have_text("ship")
        for model in (CNN, FC):
            expect(card(page, model).locator(".warning", has_text="no end marker")).to_be_visible()


def test_broken_picture_is_said_in_words_and_the_next_one_works(
    open_page: OpenPage, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(sample_file("cat").read_bytes()[:300])
    text = tmp_path / "words.txt"
    text.write_text("no picture at all")
    with open_page(troubles=True) as page:
        expect(answer(page)).to_have_text("dog")
        page.get_by_label("Picture file").set_input_files(broken)
        expect(page.locator(".seen").get_by_role("alert")).to_contain_text(
            "image file is truncated"
        )
        expect(page.get_by_role("alert")).to_have_count(1)  # and not once more for each model
        expect(page.get_by_role("article")).to_have_count(0)
        page.get_by_label("Picture file").set_input_files(text)
        expect(page.locator(".seen").get_by_role("alert")).to_contain_text("not an image")
        page.dispatch_event("header", "drop", {"dataTransfer": page.evaluate_handle(NO_FILE)})
        expect(page.locator(".picture").get_by_role("alert")).to_contain_text("no picture file")
        page.get_by_role("button", name="ship", exact=True).click()
        expect(answer(page)).to_have_text("ship")
        expect(page.locator(".seen").get_by_role("alert")).to_have_count(0)


NO_FILE = """() => {
  const transfer = new DataTransfer();
  transfer.setData("text/uri-list", "https://example.org/cat.png");
  return transfer;
}"""


def test_service_that_is_gone_is_said_and_asked_again_when_it_is_back(
    open_page: OpenPage, tmp_path: Path
) -> None:
    command = [*CONVSCOPE, "serve"]
    with (
        started(command, STORE, tmp_path / "log", **SERVED) as server,
        open_page(url=server.url, troubles=True) as page,
    ):
        expect(answer(page)).to_have_text("dog")
        server.stop()
        page.get_by_label("Coverage of the prediction sets").select_option("95%")
        alert = card(page).get_by_role("alert")
        expect(alert).to_contain_text("The service does not answer")
        page.get_by_role("button", name="ship", exact=True).first.click()
        expect(page.locator(".seen").get_by_role("alert")).to_contain_text("does not answer")
        with started(command, STORE, tmp_path / "again", server.port, **SERVED):
            page.get_by_role("button", name="Try again").first.click()
            expect(card(page).locator(".set")).to_contain_text("95% set")
            expect(answer(page)).to_have_text("ship")
            expect(answer(page, FC)).not_to_be_empty()
            expect(page.get_by_role("alert")).to_have_count(0)


def test_one_click_asks_again_for_everything_that_failed(open_page: OpenPage) -> None:
    with open_page(troubles=True) as page:
        expect(answer(page)).to_have_text("dog")
        page.route("**/predict?*", lambda route: route.abort())
        page.get_by_label("Coverage of the prediction sets").select_option("95%")
        expect(page.get_by_role("alert")).to_have_count(2)
        page.unroute("**/predict?*")
        page.get_by_role("button", name="Try again").first.click()
        expect(page.get_by_role("alert")).to_have_count(0)
        for model in (CNN, FC):
            expect(card(page, model).locator(".set")).to_contain_text("95% set")


def test_answer_to_the_picture_before_is_not_taken_for_the_new_ones(open_page: OpenPage) -> None:
    with open_page() as page:
        expect(answer(page)).to_have_text("dog")
        page.route("**/predict?*", lambda _: None)  # is never answered
        page.get_by_role("button", name="ship", exact=True).first.click()
        expect(card(page)).to_have_class("card old")


def test_back_shows_the_sample_that_stands_in_the_address(open_page: OpenPage) -> None:
    with open_page("?sample=frog") as page:
        expect(answer(page)).to_have_text("frog")
        page.get_by_label("Picture file").set_input_files(sample_file("truck"))
        expect(answer(page)).to_have_text("truck")
        page.go_back()
        expect(answer(page)).to_have_text("frog")
        page.go_forward()
        expect(answer(page)).to_have_text("truck")


def test_sample_that_is_shown_already_is_no_further_step_back(open_page: OpenPage) -> None:
    with open_page("?sample=frog") as page:
        steps = page.evaluate("history.length")
        page.get_by_role("button", name="frog", exact=True).first.click()
        expect(answer(page)).to_have_text("frog")
        assert page.evaluate("history.length") == steps


def test_picture_dropped_on_another_view_is_classified(open_page: OpenPage) -> None:
    with open_page("?view=matrix") as page:
        expect(page.locator(".matrix")).to_be_visible()
        data = transfer(page, sample_file("truck").read_bytes())
        page.dispatch_event("header", "drop", {"dataTransfer": data})
        expect(answer(page)).to_have_text("truck")


def test_picture_is_explained_once_and_for_its_own_class(open_page: OpenPage) -> None:
    with open_page() as page:
        expect(heat_map(page, CNN, "dog")).to_be_visible()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.get_by_role("button", name="ship", exact=True).click()
        expect(heat_map(page, CNN, "ship")).to_be_visible()
        expect(card(page, FC).locator(".overlay")).to_be_visible()
        explained = [url for url in asked if "/explain" in url]
        assert len(explained) == 2
        assert not [url for url in explained if "class=dog" in url]


def test_pictures_that_are_no_longer_shown_are_let_go_when_they_have_been_read(
    open_page: OpenPage,
) -> None:
    with open_page() as page:
        page.clock.install()
        page.evaluate(COUNT_ADDRESSES)
        for name in ("ship", "frog", "horse"):
            page.get_by_role("button", name=name, exact=True).click()
            expect(heat_map(page, CNN, name)).to_be_visible()
            expect(card(page, FC).locator(".overlay")).to_be_visible()
        made, revoked = page.evaluate("[window.made, window.revoked]")
        assert made >= 9  # as seen, and a heat map of each model
        assert revoked == 0
        page.clock.fast_forward("02:00")
        page.wait_for_function("window.made - window.revoked <= 4")  # those that are shown


def test_picture_that_stands_for_the_next_one_can_be_shown_again(open_page: OpenPage) -> None:
    with open_page("?sample=ship&view=network") as page:
        seen = page.get_by_role("region", name="The picture and what the network sees")
        expect(seen.get_by_role("img", name="ship")).to_be_visible()
        page.route("**/frog.png", lambda _: None)  # it is on its way for ever
        page.get_by_role("button", name="frog", exact=True).click()
        expect(seen).to_contain_text("Fetching the picture")
        page.get_by_role("link", name="Filters").click()
        expect(seen).to_have_count(0)
        page.get_by_role("link", name="Through the network").click()
        ship = seen.get_by_role("img", name="ship")
        assert ship.evaluate("async (image) => (await image.decode(), image.naturalWidth)") == 32


COUNT_ADDRESSES = """() => {
  [window.made, window.revoked] = [0, 0];
  const [make, revoke] = [URL.createObjectURL, URL.revokeObjectURL];
  URL.createObjectURL = (data) => { window.made++; return make.call(URL, data); };
  URL.revokeObjectURL = (url) => { window.revoked++; return revoke.call(URL, url); };
}"""
