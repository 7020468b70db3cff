//! Charts as SVG: values by category, as bars, stacked bars or lines.
//!
//! Every axis here has few places with names (jobs, sizes, numbers of lanes), so one kind of chart is enough.

use std::ops::Range;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// How the values are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A bar a series, side by side.
    Bars,
    /// One bar, the series on top of each other.
    Stack,
    /// A line a series.
    Lines,
}

/// One line of the legend: a name, and a value for each category.
pub(super) struct Series {
    pub(super) name: String,
    pub(super) values: Vec<f64>,
}

/// A chart to be.
pub(super) struct Chart {
    /// Of the file, without its ending.
    pub(super) file: &'static str,
    pub(super) title: String,
    pub(super) kind: Kind,
    /// What the categories are.
    pub(super) across: &'static str,
    /// What the values are, with their unit.
    pub(super) up: &'static str,
    /// Names of the categories; a line break after each comma.
    pub(super) categories: Vec<String>,
    pub(super) series: Vec<Series>,
    /// A height to compare with, and what it means.
    pub(super) mark: Option<(f64, &'static str)>,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Plane<'a, 'b> = ChartContext<
    'a,
    SVGBackend<'b>,
    Cartesian2d<plotters::coord::types::RangedCoordf64, plotters::coord::types::RangedCoordf64>,
>;

const HEIGHT: u32 = 420;
const LEFT: u32 = 78;
const BOTTOM: u32 = 64;
const TOP: u32 = 78;
const RIGHT: u32 = 16;
const FONT: &str = "sans-serif";
/// Told apart by people who do not see all colours (Okabe and Ito).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(230, 159, 0),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(140, 140, 140),
];

impl Chart {
    /// The SVG's text.
    pub(super) fn draw(&self) -> Result<String> {
        let mut text = String::new();
        {
            let area = SVGBackend::with_string(&mut text, (self.width(), HEIGHT));
            self.draw_on(&area.into_drawing_area())
                .map_err(|error| anyhow!("draw {}: {error}", self.file))?;
        }
        text.push('\n');
        Ok(text)
    }

    /// Room for the categories' names.
    fn width(&self) -> u32 {
        let per_category: u32 = if self.kind == Kind::Lines { 90 } else { 112 };
        let count = u32::try_from(self.categories.len()).unwrap_or(u32::MAX);
        (LEFT + RIGHT + per_category.saturating_mul(count)).clamp(560, 1600)
    }

    fn draw_on(&self, area: &Area<'_>) -> Result<(), Box<dyn std::error::Error>> {
        area.fill(&WHITE)?;
        area.draw(&Text::new(
            self.title.clone(),
            (pixels(LEFT), 12),
            (FONT, 16).into_font().color(&BLACK),
        ))?;
        self.legend(area)?;
        let count = number(self.categories.len());
        let mut chart = ChartBuilder::on(area)
            .margin_top(TOP)
            .margin_right(RIGHT)
            .set_label_area_size(LabelAreaPosition::Left, LEFT)
            .set_label_area_size(LabelAreaPosition::Bottom, BOTTOM)
            .build_cartesian_2d(0.0..count, 0.0..self.highest() * 1.08)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .disable_x_axis()
            .light_line_style(WHITE)
            .bold_line_style(RGBColor(225, 225, 225))
            .y_desc(self.up)
            .y_label_formatter(&|value| tick(*value))
            .axis_desc_style((FONT, 14))
            .label_style((FONT, 13))
            .draw()?;
        match self.kind {
            Kind::Bars => self.bars(&mut chart)?,
            Kind::Stack => self.stack(&mut chart)?,
            Kind::Lines => self.lines(&mut chart)?,
        }
        if let Some((height, _)) = self.mark {
            let ends = [(0.0, height), (count, height)];
            chart.draw_series(DashedLineSeries::new(ends, 6, 4, BLACK.into()))?;
        }
        self.names(area)?;
        area.present()?;
        Ok(())
    }

    fn highest(&self) -> f64 {
        let values = |at: usize| {
            let values = self.series.iter().map(move |one| one.values[at]);
            values.filter(|value| value.is_finite())
        };
        let columns = (0..self.categories.len()).map(|at| {
            if self.kind == Kind::Stack {
                values(at).sum()
            } else {
                values(at).fold(0.0, f64::max)
            }
        });
        let highest = columns.fold(0.0, f64::max);
        let mark = self.mark.map_or(0.0, |(height, _)| height);
        highest.max(mark).max(f64::MIN_POSITIVE)
    }

    fn bars(&self, chart: &mut Plane<'_, '_>) -> Result<(), Box<dyn std::error::Error>> {
        let width = 0.8 / number(self.series.len());
        for (at, series) in self.series.iter().enumerate() {
            let bars = series.values.iter().enumerate().map(|(category, value)| {
                let left = number(category) + 0.1 + width * number(at);
                bar(left..left + width * 0.92, 0.0..*value, colour(at))
            });
            chart.draw_series(bars)?;
            let style = (FONT, 11).into_font().color(&BLACK);
            let style = style.pos(Pos::new(HPos::Center, VPos::Bottom));
            let labels = series.values.iter().enumerate().map(|(category, value)| {
                let middle = number(category) + 0.1 + width * (number(at) + 0.46);
                let place = EmptyElement::at((middle, *value));
                place + Text::new(short(*value), (0, -2), style.clone())
            });
            chart.draw_series(labels)?;
        }
        Ok(())
    }

    fn stack(&self, chart: &mut Plane<'_, '_>) -> Result<(), Box<dyn std::error::Error>> {
        let mut floor = vec![0.0; self.categories.len()];
        for (at, series) in self.series.iter().enumerate() {
            let bars = series.values.iter().enumerate().map(|(category, value)| {
                let (left, low) = (number(category) + 0.15, floor[category]);
                floor[category] += value;
                bar(left..left + 0.7, low..floor[category], colour(at))
            });
            chart.draw_series(bars)?;
        }
        Ok(())
    }

    fn lines(&self, chart: &mut Plane<'_, '_>) -> Result<(), Box<dyn std::error::Error>> {
        for (at, series) in self.series.iter().enumerate() {
            let points = series.values.iter().enumerate();
            let points: Vec<(f64, f64)> = points
                .filter(|(_, value)| value.is_finite())
                .map(|(category, value)| (number(category) + 0.5, *value))
                .collect();
            chart.draw_series(LineSeries::new(points.clone(), colour(at).stroke_width(2)))?;
            let dots = points
                .into_iter()
                .map(|point| Circle::new(point, 4, colour(at).filled()));
            chart.draw_series(dots)?;
        }
        Ok(())
    }

    /// Under the title, from left to right, in a second row where the first is full.
    fn legend(&self, area: &Area<'_>) -> Result<(), Box<dyn std::error::Error>> {
        let (mut x, mut y) = (pixels(LEFT), 38);
        let style = (FONT, 13).into_font().color(&BLACK);
        let end = pixels(self.width() - RIGHT);
        let series = self.series.iter().enumerate();
        let series = series.map(|(at, series)| (series.name.as_str(), Some(colour(at))));
        for (name, colour) in series.chain(self.mark.map(|(_, name)| (name, None))) {
            // a letter is some seven pixels wide at this size
            let width = 34 + 7 * pixels(u32::try_from(name.len())?);
            if x + width > end && x > pixels(LEFT) {
                (x, y) = (pixels(LEFT), y + 18);
            }
            match colour {
                Some(colour) => {
                    area.draw(&Rectangle::new([(x, y), (x + 12, y + 12)], colour.filled()))?;
                }
                None => {
                    for left in [x - 2, x + 7] {
                        let dash = [(left, y + 6), (left + 6, y + 6)];
                        area.draw(&PathElement::new(dash, BLACK))?;
                    }
                }
            }
            area.draw(&Text::new(name.to_owned(), (x + 18, y), style.clone()))?;
            x += width;
        }
        Ok(())
    }

    /// The categories' names, and what they are.
    fn names(&self, area: &Area<'_>) -> Result<(), Box<dyn std::error::Error>> {
        let style = (FONT, 13).into_font().color(&BLACK);
        let style = style.pos(Pos::new(HPos::Center, VPos::Top));
        let room = f64::from(self.width() - LEFT - RIGHT);
        let foot = pixels(HEIGHT - BOTTOM);
        for (at, name) in self.categories.iter().enumerate() {
            let share = (number(at) + 0.5) / number(self.categories.len());
            let x = pixels(LEFT) + rounded(room * share);
            for (row, line) in (0..).zip(name.split(", ")) {
                area.draw(&Text::new(
                    line.to_owned(),
                    (x, foot + 8 + 16 * row),
                    style.clone(),
                ))?;
            }
        }
        let middle = pixels(LEFT) + rounded(room / 2.0);
        let axis = (FONT, 14).into_font().color(&BLACK);
        let axis = axis.pos(Pos::new(HPos::Center, VPos::Bottom));
        area.draw(&Text::new(self.across, (middle, pixels(HEIGHT) - 4), axis))?;
        Ok(())
    }
}

fn bar(x: Range<f64>, y: Range<f64>, colour: RGBColor) -> Rectangle<(f64, f64)> {
    Rectangle::new([(x.start, y.start), (x.end, y.end)], colour.filled())
}

fn colour(at: usize) -> RGBColor {
    COLOURS[at % COLOURS.len()]
}

/// Charts have few places; what is more is none.
fn number(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::NAN, f64::from)
}

fn pixels(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// A float's whole part by way of its digits: there is no other way without `as`.
fn rounded(value: f64) -> i32 {
    format!("{value:.0}").parse().unwrap_or(0)
}

/// At an axis.
fn tick(value: f64) -> String {
    if value >= 10_000.0 {
        format!("{:.0}k", value / 1000.0)
    } else if value >= 10.0 || value == 0.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.1}")
    }
}

/// Over a bar.
fn short(value: f64) -> String {
    if value >= 10_000.0 {
        format!("{:.0}k", value / 1000.0)
    } else if value >= 1000.0 {
        format!("{:.1}k", value / 1000.0)
    } else if value >= 10.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(kind: Kind) -> Chart {
        Chart {
            file: "test",
            title: "Title".into(),
            kind,
            across: "job",
            up: "IOPS",
            categories: vec!["4 KiB, read".into(), "1 MiB, write".into()],
            series: vec![
                Series {
                    name: "one".into(),
                    values: vec![1.0, 2.0],
                },
                Series {
                    name: "two".into(),
                    values: vec![3.0, f64::NAN],
                },
            ],
            mark: Some((2.0, "a mark")),
        }
    }

    #[test]
    fn all_words_are_in_the_picture() {
        for kind in [Kind::Bars, Kind::Stack, Kind::Lines] {
            let svg = chart(kind).draw().unwrap();
            for word in [
                "Title", "job", "IOPS", "4 KiB", "read", "one", "two", "a mark",
            ] {
                assert!(svg.contains(word), "{kind:?}: {word}");
            }
        }
    }

    #[test]
    fn the_axis_ends_above_what_is_highest() {
        assert!((chart(Kind::Bars).highest() - 3.0).abs() < 1e-9);
        assert!((chart(Kind::Stack).highest() - 4.0).abs() < 1e-9);
    }

    #[test]
    fn a_float_becomes_a_pixel() {
        assert_eq!(rounded(41.6), 42);
        assert_eq!(rounded(f64::NAN), 0);
    }
}
