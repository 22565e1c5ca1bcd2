"""The page with models of several tasks: which are shown, what detectors and segmenters find."""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from playwright.sync_api import Locator, Page, Route, expect

from app.explore.palette import COLOURS
from app.images import rle
from tests.support.browser import CNN, FC, STORE, OpenPage, sample_file
from tests.support.detectors import HEIGHT, WIDTH, write_detector
from tests.support.servers import CONVSCOPE, Server, started

pytestmark = pytest.mark.slow

FAST = "fast/4"
BOX = (80, 48, 64, 40)
"""Of the white rectangle in the picture: x, y, width and height."""

WIDE, HIGH = 4 * WIDTH, 4 * HEIGHT


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Three classifiers, and two detectors that find a white rectangle."""
    place = tmp_path_factory.mktemp("tasks")
    store = place / "store"
    for name in (CNN, FC, FAST):
        (store / name).parent.mkdir(parents=True)
        (store / name).symlink_to(STORE / name)
    write_detector(store, "finder")
    write_detector(store, "seeker")
    changes = {"CONVSCOPE_DEFAULT_MODEL": CNN}
    with started([*CONVSCOPE, "serve"], store, place / "log", **changes) as running:
        yield running


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pixels = np.zeros((HIGH, WIDE, 3), np.uint8)
    x, y, width, height = BOX
    pixels[y : y + height, x : x + width] = 255
    path = tmp_path_factory.mktemp("picture") / "white.png"
    Image.fromarray(pixels).save(path)
    return path


def card(page: Page, model: str) -> Locator:
    return page.get_by_role("article", name=model)


def toggle(page: Page, model: str) -> Locator:
    return page.get_by_role("list", name="Models to show").get_by_role("button", name=model)


def give(page: Page, picture: Path, model: str = "finder/1") -> Locator:
    """Give the page a picture, and return the list of the objects that are found."""
    page.get_by_label("Picture file").set_input_files(picture)
    expect(card(page, model).get_by_role("figure")).to_contain_text(picture.name)
    return objects(page, model)


def objects(page: Page, model: str = "finder/1") -> Locator:
    found = card(page, model).get_by_role("list", name="Objects, the best first", exact=True)
    return found.get_by_role("button")


def areas(page: Page, name: str = "Areas without objects") -> Locator:
    return page.get_by_role("list", name=name, exact=True).get_by_role("button")


def told(buttons: Locator, count: int) -> list[str]:
    expect(buttons).to_have_count(count)
    return [" ".join((one.text_content() or "").split()) for one in buttons.all()]


def boxes(page: Page) -> Locator:
    return page.locator(".boxes rect:not(.halo)")


def test_first_models_are_open_and_the_others_a_click_away(open_page: OpenPage) -> None:
    with open_page() as page:
        expect(page.get_by_role("article")).to_have_count(2)
        assert [toggle(page, name).get_attribute("aria-pressed") for name in (CNN, FC, FAST)] == [
            "true",
            "true",
            "false",
        ]
        expect(toggle(page, FAST)).to_contain_text(re.compile(r"9\d\.\d%"))
        toggle(page, FAST).focus()
        page.keyboard.press("Enter")
        expect(card(page, FAST).locator(".answer")).to_contain_text("dog")
        toggle(page, CNN).click()
        expect(page.get_by_role("article")).to_have_count(2)
        page.reload()
        expect(card(page, FC).locator(".answer")).not_to_be_empty()
        expect(card(page, FAST).locator(".answer")).to_contain_text("dog")
        expect(card(page, CNN)).to_have_count(0)
        page.go_back()
        expect(page.get_by_role("article")).to_have_count(3)


def test_one_model_stays_open(open_page: OpenPage) -> None:
    with open_page(f"?models={FAST}") as page:
        expect(toggle(page, FAST)).to_have_attribute("aria-disabled", "true")
        toggle(page, FAST).click(force=True)
        expect(page.get_by_role("article")).to_have_count(1)
        expect(card(page, FAST)).to_be_visible()


def test_each_task_keeps_its_own_models(open_page: OpenPage) -> None:
    with open_page(f"?models={FAST}") as page:
        page.get_by_role("link", name="Detect").click()
        expect(card(page, "finder/1")).to_be_visible()
        toggle(page, "seeker").click()
        expect(page.get_by_role("article")).to_have_count(2)
        page.get_by_role("link", name="Classify").click()
        expect(page.get_by_role("article")).to_have_count(1)
        expect(card(page, FAST)).to_be_visible()
        page.go_back()
        expect(card(page, "seeker/1")).to_be_visible()


def test_task_without_a_model_is_not_mentioned(open_page: OpenPage) -> None:
    with open_page() as page:
        views = page.get_by_role("navigation", name="Views").get_by_role("link")
        assert views.all_inner_texts()[:3] == ["Classify", "Detect", "Through the network"]
        assert "egment" not in page.inner_text("body")


def test_service_of_detectors_alone_begins_with_them(
    open_page: OpenPage, tmp_path: Path, picture: Path
) -> None:
    write_detector(tmp_path / "store")
    changes = {"CONVSCOPE_DEFAULT_MODEL": "finder"}
    with (
        started([*CONVSCOPE, "serve"], tmp_path / "store", tmp_path / "log", **changes) as alone,
        open_page(url=alone.url) as page,
    ):
        views = page.get_by_role("navigation", name="Views").get_by_role("link")
        expect(views.first).to_have_text("Detect")
        assert page.title() == "Detect · Convscope"
        expect(give(page, picture)).to_have_count(3)
        assert page.get_by_role("list", name="Models to show").count() == 0


def test_boxes_are_drawn_where_the_objects_are_in_the_colours_of_their_classes(
    open_page: OpenPage, picture: Path
) -> None:
    with open_page("?view=detect") as page:
        expect(give(page, picture)).to_have_count(3)
        expect(boxes(page)).to_have_count(3)
        names = ("x", "y", "width", "height")
        found = [
            (tuple(float(box.get_attribute(name) or "") for name in names), stroke)
            for box in boxes(page).all()
            for stroke in [box.evaluate("rect => getComputedStyle(rect).stroke")]
        ]
        cell, platelet = (f"rgb({', '.join(map(str, colour))})" for colour in COLOURS[:2])
        shifted = (BOX[0] + 8, BOX[1] + 8, *BOX[2:])
        assert sorted(found) == sorted([(BOX, cell), (BOX, platelet), (shifted, cell)])
        on_screen = boxes(page).first.bounding_box()
        image = page.get_by_role("img", name="white.png with boxes").bounding_box()
        assert on_screen
        assert image
        scale = image["width"] / WIDE
        assert image["height"] == pytest.approx(scale * HIGH, abs=2)
        assert on_screen["x"] - image["x"] == pytest.approx(scale * BOX[0], abs=4)
        assert on_screen["width"] == pytest.approx(scale * BOX[2], abs=8)


def test_list_names_objects_with_their_scores_and_places(
    open_page: OpenPage, picture: Path
) -> None:
    with open_page("?view=detect") as page:
        first, second, third = give(page, picture).all()
        where = "64 by 40 pixels, 80 from the left, 48 from the top"
        name = " ".join((first.text_content() or "").split())
        assert name == f"cell 90.0%, {where}"
        expect(second).to_contain_text("60.0%")
        expect(third).to_contain_text("platelet")
        answer = card(page, "finder/1").locator(".answer")
        expect(answer).to_have_text(re.compile(r"3 objects\s*: 2 cell, 1 platelet"))
        expect(answer).to_have_attribute("aria-live", "polite")


def test_slider_hides_objects_without_asking_again(open_page: OpenPage, picture: Path) -> None:
    with open_page("?view=detect") as page:
        give(page, picture)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        slider = page.get_by_label("Least score")
        expect(slider).to_have_value("0.25")  # the model's own
        slider.fill("0.7")
        expect(objects(page)).to_have_count(1)
        expect(boxes(page)).to_have_count(1)
        expect(card(page, "finder/1").locator(".answer")).to_contain_text("1 object")
        slider.fill("0.95")
        expect(card(page, "finder/1").locator(".answer")).to_contain_text("No objects")
        slider.fill("0.01")
        expect(objects(page)).to_have_count(3)
        slider.focus()
        page.keyboard.press("End")
        expect(objects(page)).to_have_count(0)
        assert [url for url in asked if not url.endswith("icon.svg")] == []
        slider.fill("0.5")
        assert "threshold=0.5" in page.url
        steps = page.evaluate("history.length")
        slider.fill("0.4")
        assert page.evaluate("history.length") == steps
        page.reload()
        expect(page.get_by_label("Least score")).to_have_value("0.4")


def test_slider_says_exactly_what_scores_are_compared_with(
    open_page: OpenPage, picture: Path
) -> None:
    def own(route: Route) -> None:
        response = route.fetch()
        manifest = response.json() | {"score_threshold": 0.600004}
        route.fulfill(response=response, body=json.dumps(manifest))

    with open_page() as page:
        page.route("**/models/finder/versions/1", own)
        page.goto(f"{page.url}?view=detect")
        expect(give(page, picture)).to_have_count(1)  # the second has 0.6
        slider, shown = page.get_by_label("Least score"), page.locator(".choice output")
        expect(shown).to_have_text("60.0004%")
        expect(slider).to_have_attribute("aria-valuetext", "60.0004%")
        slider.fill("0.57")
        expect(shown).to_have_text("57%")
        expect(objects(page)).to_have_count(2)


def test_slider_filters_while_it_moves(open_page: OpenPage, picture: Path) -> None:
    with open_page("?view=detect") as page:
        give(page, picture)
        page.get_by_label("Least score").evaluate(
            "slider => { slider.value = 0.7; slider.dispatchEvent(new Event('input')); }"
        )
        expect(objects(page)).to_have_count(1)
        assert "threshold" not in page.url


def test_picture_is_asked_about_once_with_a_low_score(open_page: OpenPage) -> None:
    with open_page() as page:
        expect(page.locator(".overlay")).to_have_count(2)  # no request of this view is to come
        asked: list[str] = []
        held: list[Route] = []
        page.on("request", lambda request: asked.append(request.url))
        page.route("**/scene-1.jpg", lambda route: held.append(route))
        with page.expect_response("**/objects.js"):
            page.get_by_role("link", name="Detect").click()
        page.wait_for_timeout(500)
        assert not [url for url in asked if "/detect?" in url]  # about the classifiers' sample
        for route in held:
            route.continue_()
        page.unroute("**/scene-1.jpg")
        expect(card(page, "finder/1").get_by_role("figure")).to_be_visible()
        page.wait_for_load_state("networkidle")
        (detect,) = [url for url in asked if "/detect?" in url]
        assert "score_threshold=0.01" in detect
        assert "max_detections" not in detect  # as many as the service gives
        sent = [url.partition("?")[0].rpartition("/")[2] for url in asked if "blob:" not in url]
        assert len(sent) <= 9, sent  # two modules, samples, icon, manifest and objects


@pytest.mark.parametrize("order", [1, -1])
def test_small_box_in_a_large_one_can_be_pointed_at(open_page: OpenPage, order: int) -> None:
    detections = [
        {"bbox": [40, 40, 20, 20], "category": "cell", "category_id": 3, "score": 0.8},
        {"bbox": [10, 10, 90, 90], "category": "platelet", "category_id": 7, "score": 0.7},
    ]
    answer = {"image": {"width": WIDE, "height": HIGH}, "detections": detections[::order]}
    with open_page("?view=matrix") as page:
        serve_sample(page, answer)
        page.route("**/detect?*", lambda route: route.fulfill(json=answer))
        page.get_by_role("link", name="Detect").click()
        frame = page.locator(".frame").bounding_box()
        assert frame
        scale = frame["width"] / WIDE
        for place, name in ((50, "cell"), (80, "platelet")):
            page.mouse.move(frame["x"] + scale * place, frame["y"] + scale * place)
            expect(page.locator(".named")).to_have_text(re.compile(name))


def test_object_that_is_pointed_at_is_named_and_marked_in_list_and_picture(
    open_page: OpenPage, picture: Path
) -> None:
    with open_page("?view=detect") as page:
        found = give(page, picture)
        named = card(page, "finder/1").locator(".named")
        expect(named).to_have_count(0)
        found.nth(2).hover()
        expect(named).to_have_text(re.compile("platelet 30%"))
        expect(page.locator(".boxes .at")).to_have_count(1)
        page.mouse.move(0, 0)
        expect(named).to_have_count(0)
        image = page.get_by_role("img", name="white.png with boxes").bounding_box()
        assert image
        scale = image["width"] / WIDE
        # The lower right corner of the box that lies a little lower and further right.
        x, y = BOX[0] + BOX[2] + 6, BOX[1] + BOX[3] + 6
        page.mouse.move(image["x"] + scale * x, image["y"] + scale * y)
        expect(named).to_have_text(re.compile("cell 60%"))
        expect(found.nth(1)).to_have_class("at")


def test_objects_are_reached_with_the_keyboard(open_page: OpenPage, picture: Path) -> None:
    with open_page("?view=detect") as page:
        found = give(page, picture)
        named = card(page, "finder/1").locator(".named")
        page.get_by_label("Least score").focus()
        page.keyboard.press("Tab")
        expect(found.first).to_be_focused()
        expect(named).to_have_text(re.compile("cell 90%"))
        page.keyboard.press("Tab")
        expect(named).to_have_count(0)  # the list is one stop
        page.keyboard.press("Shift+Tab")
        expect(found.first).to_be_focused()
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowDown")
        expect(found.nth(2)).to_be_focused()
        expect(named).to_have_text(re.compile("platelet 30%"))
        page.keyboard.press("Enter")
        expect(found.nth(2)).to_have_attribute("aria-pressed", "true")
        page.keyboard.press("Tab")  # leaves the list
        expect(named).to_have_text(re.compile("platelet 30%"))
        page.keyboard.press("Shift+Tab")
        expect(found.nth(2)).to_be_focused()
        page.keyboard.press("Escape")
        expect(found.nth(2)).to_have_attribute("aria-pressed", "false")


def test_box_that_is_touched_stays_named(open_page: OpenPage, picture: Path) -> None:
    with open_page("?view=detect") as page:
        found = give(page, picture)
        found.first.click()
        page.mouse.move(0, 0)
        page.keyboard.press("Shift+Tab")
        expect(card(page, "finder/1").locator(".named")).to_have_text(re.compile("cell 90%"))


def test_names_at_the_border_stay_in_the_picture(open_page: OpenPage, tmp_path: Path) -> None:
    for place in ((0, 0), (WIDE - 16, 0), (0, HIGH - 16), (WIDE - 16, HIGH - 16)):
        pixels = np.zeros((HIGH, WIDE, 3), np.uint8)
        pixels[place[1] : place[1] + 16, place[0] : place[0] + 16] = 255
        Image.fromarray(pixels).save(tmp_path / "corner.png")
        with open_page("?view=detect", width=360) as page:
            give(page, tmp_path / "corner.png").first.focus()
            name = page.locator(".named").bounding_box()
            frame = page.locator(".frame").bounding_box()
            assert name
            assert frame
            assert frame["x"] <= name["x"]
            assert name["x"] + name["width"] <= frame["x"] + frame["width"]
            assert frame["y"] <= name["y"]
            assert name["y"] + name["height"] <= frame["y"] + frame["height"]
            upper = frame["y"] + frame["width"] / WIDE * place[1]
            lower = upper + frame["width"] / WIDE * 16
            assert name["y"] >= lower - 2 or name["y"] + name["height"] <= upper + 2


def test_three_samples_are_there_for_detectors(open_page: OpenPage) -> None:
    with open_page("?view=detect") as page:
        samples = page.get_by_role("list", name="Samples").get_by_role("button")
        expect(samples).to_have_count(3)
        for sample in samples.all():
            width = sample.get_by_role("img").evaluate(
                "image => image.decode().then(() => image.naturalWidth, () => 0)"
            )
            assert width > 0
        samples.nth(2).click()
        expect(card(page, "finder/1").get_by_role("figure")).to_contain_text("scene-3")
        assert "sample=scene-3" in page.url
        page.get_by_role("link", name="Classify").click()
        expect(page.get_by_role("list", name="Samples").get_by_role("button")).to_have_count(10)
        expect(card(page, CNN).locator(".answer")).to_contain_text("dog")


def test_picture_stays_when_the_task_changes(open_page: OpenPage) -> None:
    with open_page() as page:
        page.get_by_label("Picture file").set_input_files(sample_file("truck"))
        expect(card(page, CNN).locator(".answer")).to_contain_text("truck")
        page.get_by_role("link", name="Detect").click()
        expect(card(page, "finder/1").get_by_role("figure")).to_contain_text("truck.png, 32 × 32")


def test_file_that_is_no_picture_is_said_in_words_and_the_next_one_works(
    open_page: OpenPage, tmp_path: Path, picture: Path
) -> None:
    (tmp_path / "words.txt").write_text("no picture at all")
    with open_page("?view=detect", troubles=True) as page:
        expect(card(page, "finder/1").get_by_role("figure")).to_be_visible()
        page.get_by_label("Picture file").set_input_files(tmp_path / "words.txt")
        expect(page.get_by_role("alert")).to_have_text(re.compile("not an image"))
        expect(page.get_by_role("figure")).to_have_count(0)
        expect(give(page, picture)).to_have_count(3)
        expect(page.get_by_role("alert")).to_have_count(0)


def test_answer_to_the_picture_before_is_marked_as_old(open_page: OpenPage, picture: Path) -> None:
    with open_page("?view=detect") as page:
        give(page, picture)
        page.route("**/detect?*", lambda _: None)  # is never answered
        page.get_by_role("button", name="scene-2").click()
        expect(card(page, "finder/1")).to_have_class("card old")
        expect(card(page, "finder/1").get_by_role("figure")).to_contain_text("white.png")


SHIFTS = """() => {
  window.shifted = 0;
  new PerformanceObserver((list) => list.getEntries().forEach((entry) => {
    window.shifted += entry.value;
  })).observe({ type: "layout-shift", buffered: true });
}"""


@pytest.mark.parametrize("view", ["", "?view=detect"])
def test_nothing_moves_while_the_page_opens(open_page: OpenPage, view: str) -> None:
    with open_page(view, width=412) as page:
        page.wait_for_load_state("networkidle")
        expect(page.get_by_role("article").first.locator(".answer")).to_be_visible()
        page.evaluate(SHIFTS)
        page.wait_for_timeout(200)
        assert page.evaluate("window.shifted") < 0.05


def test_matrix_of_a_detector_has_background_and_no_pictures_behind_it(
    open_page: OpenPage,
) -> None:
    with open_page("?view=matrix&model=finder/1") as page:
        table = page.locator(".matrix")
        expect(table.get_by_role("rowheader").last).to_have_text("background")
        expect(table.get_by_role("button")).to_have_count(0)
        cells = [row.locator("td").all_inner_texts() for row in table.locator("tbody tr").all()]
        assert cells == [["36", "1", "3"], ["2", "16", "2"], ["5", "4", ""]]
        said = page.get_by_role("region", name="Confusion matrix")
        expect(said).to_contain_text("60 objects in 20 test images")
        expect(said).to_contain_text("a score of at least 25.0%")
        page.get_by_label("Cells show").select_option("percent of the true class")
        expect(table.locator("tbody tr").first).to_contain_text("90.0")
        page.get_by_label("Classes").select_option("by similarity")
        expect(table.get_by_role("rowheader").last).to_have_text("background")


def test_precision_and_recall_of_a_detector_are_shown(open_page: OpenPage) -> None:
    with open_page("?view=matrix&model=finder/1") as page:
        section = page.get_by_role("region", name="Precision and recall")
        expect(section).to_contain_text("mAP 60.0% at overlaps (IoU) of 0.5 to 0.95, 90.0% at 0.5")
        rows = section.locator("tbody tr")
        assert [" ".join(text.split()) for text in rows.all_inner_texts()] == [
            "cell 70.0% 95.0% 40",
            "platelet 50.0% 85.0% 20",
        ]
        curves = section.get_by_role("img", name="cell 95.0%, platelet 85.0%")
        expect(curves.locator("polyline:not(.halo)")).to_have_count(2)
        points = curves.locator("polyline").first.get_attribute("points") or ""
        first, *_, last = (tuple(map(float, point.split(","))) for point in points.split())
        assert (last[0] - first[0], last[1] - first[1]) == pytest.approx((300, 150), abs=0.1)
        rows.nth(1).hover()
        expect(curves.locator("g.at")).to_have_count(1)
    with open_page("?view=matrix") as page:
        expect(page.locator(".matrix")).to_be_visible()
        assert page.get_by_role("region", name="Precision").count() == 0


def test_way_from_a_detector_leads_to_its_own_matrix(open_page: OpenPage) -> None:
    with open_page("?view=detect&models=seeker/1") as page:
        expect(card(page, "seeker/1")).to_be_visible()
        page.get_by_role("link", name="Confusion matrix").click()
        expect(page.get_by_label("Model")).to_have_value("seeker/1")
        page.get_by_label("Model").select_option(FC)
        expect(page.locator(".matrix")).to_contain_text("airplane")


def test_picture_dropped_on_a_detectors_matrix_is_searched(
    open_page: OpenPage, picture: Path
) -> None:
    with open_page("?view=matrix&model=seeker/1") as page:
        expect(page.locator(".matrix")).to_be_visible()
        transfer = page.evaluate_handle(
            """bytes => {
              const transfer = new DataTransfer();
              transfer.items.add(new File([new Uint8Array(bytes)], "x.png", { type: "image/png" }));
              return transfer;
            }""",
            list(picture.read_bytes()),
        )
        page.dispatch_event("header", "drop", {"dataTransfer": transfer})
        expect(objects(page)).to_have_count(3)


def test_detector_without_layers_says_so_in_the_views_of_layers(open_page: OpenPage) -> None:
    with open_page("?view=network&model=finder/1") as page:
        expect(page.get_by_text("finder/1 was exported without layers")).to_be_visible()
        page.get_by_role("link", name="Filters").click()
        expect(page.get_by_text("finder/1 has no convolutions to look into")).to_be_visible()


def _masks() -> list[np.ndarray[Any, np.dtype[np.bool_]]]:
    """Masks of many runs and sizes: nothing, everything, noise, long runs, steps up and down."""
    rng = np.random.default_rng(0)
    shapes = [(1, 1), (1, 7), (7, 1), (13, 40), (300, 200)]
    noise = [rng.random(shape) < part for shape in shapes for part in (0, 0.02, 0.5, 0.98, 1)]
    rows, columns = np.mgrid[:900, :1200]
    return [*noise, (rows - 450) ** 2 + (columns - 600) ** 2 < 400**2, rows * columns % 977 < 300]


def test_masks_are_read_as_the_service_writes_them(open_page: OpenPage) -> None:
    with open_page() as page:
        for mask in _masks():
            height, width = mask.shape
            segmentation = {"size": [height, width], "counts": rle.encode(mask).decode()}
            places, box = page.evaluate(
                """async (segmentation) => {
                  const { boxOf, sampler } = await import("./web/rle.js");
                  const [height, width] = segmentation.size;
                  const places = [];
                  const eachPixel = sampler(segmentation.size, width, height);
                  eachPixel(segmentation.counts, (x, y) => places.push(y * width + x));
                  return [places, boxOf(segmentation)];
                }""",
                segmentation,
            )
            assert np.array_equal(np.sort(places), np.flatnonzero(mask))
            assert not mask.any() or tuple(box) == rle.bounds(rle.encode(mask), height, width)


def test_reduced_mask_has_the_pixels_in_the_middle_of_its_parts(open_page: OpenPage) -> None:
    mask = np.zeros((6, 9), np.bool_)
    mask[1, 4] = mask[4, 7] = True
    segmentation = {"size": [6, 9], "counts": rle.encode(mask).decode()}
    with open_page() as page:
        places = page.evaluate(
            """async (segmentation) => {
              const { sampler } = await import("./web/rle.js");
              const places = [];
              sampler(segmentation.size, 3, 2)(segmentation.counts, (x, y) => places.push([x, y]));
              return places;
            }""",
            segmentation,
        )
    assert places == [[1, 0], [2, 1]]


@pytest.mark.parametrize("samples", [(37, 50), (91, 20), (200, 200), (1, 1)])
def test_reduced_masks_are_samples_of_the_whole_ones(
    open_page: OpenPage, samples: tuple[int, int]
) -> None:
    across, down = samples
    with open_page() as page:
        for mask in _masks():
            height, width = mask.shape
            if height < down or width < across:
                continue
            rows, columns = (
                np.floor((np.arange(count) + 0.5) * side / count).astype(int)
                for count, side in ((down, height), (across, width))
            )
            places = page.evaluate(
                """async ([size, counts, [across, down]]) => {
                  const { sampler } = await import("./web/rle.js");
                  const places = [];
                  sampler(size, across, down)(counts, (x, y) => places.push(y * across + x));
                  return places;
                }""",
                [[height, width], rle.encode(mask).decode(), samples],
            )
            assert np.array_equal(np.sort(places), np.flatnonzero(mask[np.ix_(rows, columns)]))


TILES = 32
"""Objects in a row of a picture full of them, 1,024 in all."""


@pytest.fixture(scope="module")
def crowd() -> dict[str, Any]:
    """The answer of a segmenter that finds 1,024 objects in 1,600 by 1,600 pixels."""
    side, tile = 1600, 1600 // TILES
    numbers = np.kron(np.arange(TILES**2).reshape(TILES, TILES), np.ones((tile, tile), np.int32))
    regions = rle.encode_each(numbers.astype(np.int32))
    instances = [
        {
            "category": "cell",
            "category_id": 3,
            "score": 0.9,
            "bbox": region.box,
            "area": region.area,
            "segmentation": {"size": [side, side], "counts": region.counts.decode()},
        }
        for region in regions.values()
    ]
    return {"image": {"width": side, "height": side}, "classes": [], "instances": instances}


def test_many_masks_are_read_like_a_few(open_page: OpenPage, crowd: dict[str, Any]) -> None:
    """1,024 masks that fill a picture take less than 20 times as long as one that fills it."""
    masks = [one["segmentation"] for one in crowd["instances"]]
    size = masks[0]["size"]
    whole = rle.encode(np.ones(size, np.bool_)).decode()
    with open_page() as page:
        (painted, many), (painted_of_one, one) = page.evaluate(
            """async ([size, ...each]) => {
              const { sampler } = await import("./web/rle.js");
              return each.map((masks) => {
                let [painted, least] = [0, Infinity];
                for (let time = 0; time < 5; time++) {
                  const start = performance.now();
                  const eachPixel = sampler(size, 800, 800);
                  for (const counts of masks) eachPixel(counts, () => painted++);
                  least = Math.min(least, performance.now() - start);
                }
                return [painted, least];
              });
            }""",
            [size, [mask["counts"] for mask in masks], [whole]],
        )
    assert painted == painted_of_one == 5 * 800 * 800
    assert many < 20 * one


PAINTINGS = """() => {
  window.paintings = [];
  const { createImageData, putImageData } = CanvasRenderingContext2D.prototype;
  CanvasRenderingContext2D.prototype.createImageData = function (...given) {
    window.began = performance.now();
    return createImageData.apply(this, given);
  };
  CanvasRenderingContext2D.prototype.putImageData = function (...given) {
    window.paintings.push(performance.now() - window.began);
    return putImageData.apply(this, given);
  };
}"""


def test_many_masks_are_painted_at_once(open_page: OpenPage, crowd: dict[str, Any]) -> None:
    with open_page("?view=segment") as page:
        serve_segmenter(page, crowd)
        found = objects(page, "masker/1")
        expect(found).to_have_count(TILES**2)
        page.evaluate(PAINTINGS)
        for place in range(6):
            found.nth(place).hover()
            expect(page.locator(".named")).to_have_count(1)
        page.wait_for_function("window.paintings.length >= 4")
        array_for_each_pixel = page.evaluate(
            """() => {
              const image = new ImageData(800, 800);
              const start = performance.now();
              for (let place = 0; place < 800 * 800; place++) {
                image.data.set([...[1, 2, 3], 255], 4 * place);
              }
              return performance.now() - start;
            }"""
        )
        assert min(page.evaluate("window.paintings")) < array_for_each_pixel / 2


@pytest.fixture
def segmented() -> dict[str, Any]:
    """The answer of a segmenter: two instances, one over the other, and a class without any."""
    front = np.zeros((HIGH, WIDE), np.bool_)
    front[20:80, 20:100] = True
    back = np.zeros((HIGH, WIDE), np.bool_)
    back[60:120, 60:140] = True
    ground = np.zeros((HIGH, WIDE), np.bool_)
    ground[150:] = True

    def part(mask: np.ndarray[Any, np.dtype[np.bool_]], category: int) -> dict[str, Any]:
        return {
            "category": ("cell", "platelet")[category],
            "category_id": (3, 7)[category],
            "area": int(mask.sum()),
            "segmentation": {"size": [HIGH, WIDE], "counts": rle.encode(mask).decode()},
        }

    return {
        "image": {"width": WIDE, "height": HIGH},
        "classes": [part(front | back, 0), part(ground, 1)],
        "instances": [
            {**part(front, 0), "score": 0.9, "bbox": [20, 20, 80, 60]},
            {**part(back, 0), "score": 0.7, "bbox": [60, 60, 80, 60]},
        ],
    }


def serve_sample(page: Page, answer: dict[str, Any]) -> None:
    """Let the first sample have the size of the picture in an answer."""
    sample = io.BytesIO()
    Image.new("RGB", (answer["image"]["width"], answer["image"]["height"])).save(sample, "JPEG")
    page.route("**/scene-1.jpg", lambda route: route.fulfill(body=sample.getvalue()))


def serve_segmenter(page: Page, answer: dict[str, Any]) -> None:
    """Let the service have a segmenter, which answers this for a sample of the same size."""

    def models(route: Route) -> None:
        response = route.fetch()
        listed = response.json()
        (finder,) = [model for model in listed["models"] if model["name"] == "finder"]
        masker = {name: value for name, value in finder.items() if not name.startswith("test_")}
        masker |= {"name": "masker", "task": "segmentation", "test_iou": 0.75}
        listed["models"].append(masker)
        route.fulfill(response=response, body=json.dumps(listed))

    serve_sample(page, answer)
    page.route("**/models", models)
    page.route("**/segment?*", lambda route: route.fulfill(json=answer))
    page.reload()


PIXEL = """(canvas, [x, y]) => {
  const copy = new OffscreenCanvas(1, 1).getContext("2d");
  copy.drawImage(canvas, -x, -y);
  return [...copy.getImageData(0, 0, 1, 1).data];
}"""


def test_masks_lie_over_the_picture_in_the_colours_of_their_classes(
    open_page: OpenPage, segmented: dict[str, Any]
) -> None:
    with open_page("?view=segment") as page:
        serve_segmenter(page, segmented)
        assert told(objects(page, "masker/1"), 2) == [
            "cell 90.0%, 9.8% of the picture",
            "cell 70.0%, 9.8% of the picture",
        ]
        assert told(areas(page), 1) == ["platelet, 21.9% of the picture"]
        expect(page.get_by_role("heading", name="Areas without objects")).to_be_visible()
        expect(card(page, "masker/1").locator(".answer")).to_have_text(
            re.compile("2 objects: 2 cell")
        )
        expect(card(page, "masker/1")).to_contain_text("IoU 75.0% on the test images")
        canvas = page.locator(".masks")
        assert canvas.evaluate(PIXEL, [70, 70]) == [*COLOURS[0], 255]
        assert canvas.evaluate(PIXEL, [10, 160]) == [*COLOURS[1], 255]
        assert canvas.evaluate(PIXEL, [5, 5]) == [0, 0, 0, 0]
        assert canvas.evaluate(PIXEL, [99, 30]) == [0, 0, 0, 255]  # the edge of the front one
        image = page.get_by_role("img", name="scene-1 with masks").bounding_box()
        assert image == canvas.bounding_box()


def test_mask_that_is_pointed_at_is_named_and_the_others_fade(
    open_page: OpenPage, segmented: dict[str, Any]
) -> None:
    with open_page("?view=segment") as page:
        serve_segmenter(page, segmented)
        found = objects(page, "masker/1")
        found.nth(1).hover()
        expect(page.locator(".named")).to_have_text(re.compile("cell 70%"))
        assert page.locator(".masks").evaluate(PIXEL, [110, 100])[3] == 255
        assert page.locator(".masks").evaluate(PIXEL, [10, 160])[3] < 100
        frame = page.locator(".masks").bounding_box()
        assert frame
        scale = frame["width"] / WIDE
        page.mouse.move(frame["x"] + scale * 70, frame["y"] + scale * 70)
        expect(page.locator(".named")).to_have_text(re.compile("cell 90%"))
        expect(found.first).to_have_class("at")
        page.mouse.move(frame["x"] + scale * 5, frame["y"] + scale * 5)
        expect(page.locator(".named")).to_have_count(0)


def test_masks_are_as_opaque_as_asked(open_page: OpenPage, segmented: dict[str, Any]) -> None:
    with open_page("?view=segment") as page:
        serve_segmenter(page, segmented)
        slider = page.get_by_label("Opacity")
        expect(slider).to_have_value("0.6")
        slider.fill("0.25")
        expect(page.locator(".masks")).to_have_css("opacity", "0.25")
        assert "opacity=0.25" in page.url


def test_classes_are_shown_where_objects_are_not_told_apart(
    open_page: OpenPage, segmented: dict[str, Any]
) -> None:
    del segmented["instances"]
    with open_page("?view=segment") as page:
        serve_segmenter(page, segmented)
        expect(areas(page, "Areas, one for each class")).to_have_count(2)
        expect(page.get_by_role("list", name="Objects")).to_have_count(0)
        answer = card(page, "masker/1").locator(".answer")
        expect(answer).to_have_text(re.compile(r"2 areas\s*: cell, platelet"))
        assert page.locator(".masks").evaluate(PIXEL, [110, 100]) == [*COLOURS[0], 255]


def test_area_that_is_too_small_for_an_object_is_none(
    open_page: OpenPage, segmented: dict[str, Any]
) -> None:
    segmented["instances"] = []
    with open_page("?view=segment") as page:
        serve_segmenter(page, segmented)
        expect(card(page, "masker/1").locator(".answer")).to_have_text("No objects")
        assert told(areas(page), 2) == [
            "cell, 17.9% of the picture",
            "platelet, 21.9% of the picture",
        ]
        areas(page).nth(1).hover()
        expect(page.locator(".named")).to_have_text(re.compile("platelet"))
        assert page.locator(".masks").evaluate(PIXEL, [10, 160]) == [*COLOURS[1], 255]


@pytest.mark.parametrize("kind", ["instances", "classes"])
def test_mask_too_small_to_be_drawn_is_named_at_its_place(open_page: OpenPage, kind: str) -> None:
    side, place = 4000, (3002, 2001)
    mask = np.zeros((side, side), np.bool_)
    mask[place[1], place[0]] = True
    one = {
        "category": "cell",
        "category_id": 3,
        "area": 1,
        "segmentation": {"size": [side, side], "counts": rle.encode(mask).decode()},
    }
    answer: dict[str, Any] = {"image": {"width": side, "height": side}, "classes": [one]}
    if kind == "instances":
        answer["instances"] = [{**one, "score": 0.9, "bbox": [*place, 1, 1]}]
    with open_page("?view=segment") as page:
        serve_segmenter(page, answer)
        card(page, "masker/1").locator(".objects button").hover()
        name, frame = (page.locator(one).bounding_box() for one in (".named", ".frame"))
        assert name
        assert frame
        right, lower = name["x"] + name["width"], name["y"] + name["height"]
        assert right == pytest.approx(frame["x"] + frame["width"] * 3003 / side, abs=3)
        assert lower == pytest.approx(frame["y"] + frame["height"] * 2001 / side, abs=3)


def test_matrix_of_a_segmenter_counts_pixels_and_has_its_overlap(open_page: OpenPage) -> None:
    matrix = {
        "labels": ["cell", "platelet", "background"],
        "images": 20,
        "objects": 60,
        "counts": [[900, 10, 90], [0, 500, 40], [70, 30, 9000]],
    }
    classes = [{"label": "cell", "iou": 0.8, "objects": 40}]
    figures = {"images": 20, "objects": 60, "iou": 0.75, "instance_f1": 0.9, "per_class": classes}
    with open_page() as page:
        page.route("**/confusion-matrix?*", lambda route: route.fulfill(json=matrix))
        page.route("**/evaluation?*", lambda route: route.fulfill(json=figures))
        page.goto(f"{page.url}?view=matrix&model=finder/1")
        expect(page.locator(".matrix").get_by_role("button")).to_have_count(0)
        said = page.get_by_role("region", name="Confusion matrix")
        expect(said).to_contain_text("The pixels of 20 test images")
        overlap = page.get_by_role("region", name="Overlap")
        expect(overlap).to_contain_text("IoU 75.0%")
        expect(overlap).to_contain_text("F1 90.0%")
        assert " ".join(overlap.locator("tbody").inner_text().split()) == "cell 80.0%"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
def test_views_of_detectors_and_segmenters_fit_and_have_no_barrier_that_axe_finds(
    open_page: OpenPage, picture: Path, segmented: dict[str, Any], width: int, scheme: str
) -> None:
    def check(page: Page) -> None:
        page.wait_for_load_state("networkidle")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        results = Axe().run(page)
        assert results.violations_count == 0, results.generate_report()

    with open_page("?view=detect&models=finder/1,seeker/1", width=width, scheme=scheme) as page:
        give(page, picture).nth(2).focus()
        expect(page.locator(".named")).to_be_visible()
        check(page)
    with open_page("?view=matrix&model=finder/1", width=width, scheme=scheme) as page:
        expect(page.locator(".figures")).to_be_visible()
        check(page)
    with open_page("?view=segment", width=width, scheme=scheme) as page:
        serve_segmenter(page, segmented)
        objects(page, "masker/1").first.focus()
        check(page)


def test_picture_that_is_turned_by_its_exif_has_its_boxes_upright(
    open_page: OpenPage, picture: Path, tmp_path: Path
) -> None:
    turned = io.BytesIO()
    with Image.open(picture) as upright:
        exif = upright.getexif()
        exif[0x0112] = 6  # to be turned by a quarter to the right
        upright.transpose(Image.Transpose.ROTATE_90).save(
            turned, "JPEG", quality=98, exif=exif.tobytes()
        )
    (tmp_path / "turned.jpg").write_bytes(turned.getvalue())
    with open_page("?view=detect") as page:
        give(page, tmp_path / "turned.jpg")
        expect(card(page, "finder/1").get_by_role("figure")).to_contain_text(f"{WIDE} × {HIGH}")
        shown = page.get_by_role("img", name="turned.jpg with boxes").evaluate(
            "image => [image.naturalWidth, image.naturalHeight]"
        )
        assert shown == [WIDE, HIGH]
        assert float(boxes(page).last.get_attribute("x") or "") == pytest.approx(BOX[0], abs=2)


ANIMATED = {"save_all": True, "duration": 200, "loop": 0}


def _turned(picture: Image.Image) -> tuple[Image.Image, bytes]:
    """Return a picture upside down, and the EXIF that turns it back."""
    exif = Image.Exif()
    exif[0x0112] = 3
    return picture.transpose(Image.Transpose.ROTATE_180), exif.tobytes()


def _strange(picture: Image.Image, name: str) -> bytes:
    """Write a picture so that Chromium shows another one, or none."""
    other = Image.new("RGB", picture.size, "red")
    turned, exif = _turned(picture)
    text = PngInfo()
    text.add_text("Raw profile type exif", f"\nexif\n{len(exif):8}\n{exif.hex()}\n")
    file = io.BytesIO()
    match name:
        case "scan.tif":
            picture.save(file, "TIFF")
        case "moves.gif" | "moves.webp" | "moves.png":
            kind = name.rpartition(".")[2]
            picture.save(file, kind, append_images=[other], lossless=True, **ANIMATED)
        case "turned.webp":
            turned.save(file, "WEBP", lossless=True, exif=exif)
        case _:
            turned.save(file, "PNG", pnginfo=text)
    return file.getvalue()


CORNERS = """async (image) => {
  await image.decode();
  const canvas = new OffscreenCanvas(10, 20).getContext("2d");
  canvas.drawImage(image, 0, 0, 10, 20);
  const { data } = canvas.getImageData(0, 0, 10, 20);
  return [[4, 7], [6, 13]].map(([x, y]) => data[4 * (10 * y + x)] > 127);
}"""


@pytest.mark.parametrize(
    "name", ["scan.tif", "moves.gif", "moves.webp", "moves.png", "turned.webp", "text.png"]
)
def test_file_that_the_browser_shows_otherwise_is_shown_as_the_network_sees_it(
    open_page: OpenPage, picture: Path, tmp_path: Path, name: str
) -> None:
    with Image.open(picture) as upright:
        (tmp_path / name).write_bytes(_strange(upright, name))
    with open_page("?view=detect") as page:
        found = give(page, tmp_path / name)
        expect(found).to_have_count(3)
        scene = card(page, "finder/1").get_by_role("figure")
        expect(scene).to_contain_text("this is what the network sees")
        expect(scene).to_contain_text(f"{WIDE} × {HIGH} pixels")
        shown = page.get_by_role("img", name=f"{name} with boxes")
        size = shown.evaluate("image => [image.naturalWidth, image.naturalHeight]")
        assert size == [WIDTH, HEIGHT]
        assert shown.evaluate(CORNERS) == [True, False]
        give(page, picture)
        expect(scene).not_to_contain_text("network")


def test_picture_in_a_letterbox_is_shown_without_its_margins(
    open_page: OpenPage, tmp_path: Path
) -> None:
    """A margin that is left would be as black as the picture: its edges are white."""
    pixels = np.zeros((100, 400, 3), np.uint8)
    pixels[:8] = pixels[-8:] = 255
    Image.fromarray(pixels).save(tmp_path / "flat.tif")
    with open_page("?view=detect") as page:
        give(page, tmp_path / "flat.tif")
        shown = page.get_by_role("img", name="flat.tif with boxes")
        expect(shown).to_be_visible()
        shot = Image.open(io.BytesIO(page.locator(".frame").screenshot()))
        frame = np.asarray(shot.convert("L"))
        height, width = frame.shape
        edge = height // 20
        assert frame[[edge, height - edge], width // 2].min() > 127
        assert frame[height // 2, width // 2] < 127


def test_file_whose_orientation_the_browser_does_not_know_is_shown_as_the_network_sees_it(
    open_page: OpenPage, picture: Path
) -> None:
    """The browser shows it in another size than the service says."""
    with open_page("?view=detect") as page:
        answer = {"image": {"width": HIGH, "height": WIDE}, "detections": []}
        page.route("**/detect?*", lambda route: route.fulfill(json=answer))
        page.get_by_label("Picture file").set_input_files(picture)
        expect(card(page, "finder/1").get_by_role("figure")).to_contain_text("the network sees")


def test_nothing_lies_over_a_picture_that_cannot_be_shown(
    open_page: OpenPage, picture: Path, tmp_path: Path
) -> None:
    with Image.open(picture) as upright:
        upright.save(tmp_path / "scan.tif")
    with open_page("?view=detect", troubles=True) as page:
        page.route("**/activations?*", lambda route: route.abort())
        give(page, tmp_path / "scan.tif")
        scene = card(page, "finder/1").get_by_role("figure")
        expect(scene).to_contain_text("The browser cannot show this file as the service reads it.")
        expect(scene.get_by_role("alert")).to_be_visible()
        expect(page.locator(".boxes")).to_have_count(0)
        expect(scene.locator("img")).to_have_count(0)
        expect(objects(page)).to_have_count(3)
        page.unroute("**/activations?*")
        page.get_by_role("button", name="Try again").click()
        expect(boxes(page)).to_have_count(3)


def test_damaged_file_that_the_browser_refuses_is_not_shown_broken(
    open_page: OpenPage, picture: Path
) -> None:
    with open_page("?view=detect", troubles=True) as page:
        page.evaluate("URL.createObjectURL = () => 'data:image/png;base64,AAAA'")
        page.get_by_label("Picture file").set_input_files(picture)
        expect(card(page, "finder/1").get_by_role("figure")).to_contain_text(
            "The browser cannot show this file"
        )


@pytest.mark.parametrize("name", ["short.png", "long " * 45 + ".png"])
def test_focus_that_goes_up_is_not_below_the_picture(
    open_page: OpenPage, segmented: dict[str, Any], tmp_path: Path, name: str
) -> None:
    segmented["instances"] *= 15
    Image.new("RGB", (WIDE, HIGH)).save(tmp_path / name)
    with open_page("?view=segment", width=360) as page:
        serve_segmenter(page, segmented)
        page.get_by_label("Picture file").set_input_files(tmp_path / name)
        found = objects(page, "masker/1")
        expect(found).to_have_count(30)
        expect(page.locator(".frame")).to_be_visible()
        found.first.focus()
        for _ in range(29):
            page.keyboard.press("ArrowDown")
        for place in reversed(range(29)):
            page.keyboard.press("ArrowUp")
            expect(found.nth(place)).to_be_focused()
            scene, focused = page.locator(".scene").bounding_box(), found.nth(place).bounding_box()
            assert scene
            assert focused
            assert focused["y"] >= scene["y"] + scene["height"]
