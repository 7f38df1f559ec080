//! `ocelli detect` and `ocelli point`: where something is in a picture.

use std::path::Path;

use anyhow::Context;
use ocelli_engine::{LocateRequest, Located};
use ocelli_processors::{Image, ImageLimits};
use serde_json::{Value, json};

use crate::arguments::{DetectArgs, LocateArgs, PointArgs};
use crate::exit::{Exit, Failure, Outcome};
use crate::inputs::Input;
use crate::interrupt::Graceful;
use crate::model;
use crate::regions::{edges, middle, object};
use crate::terminal::{note, print};

pub(crate) fn detect(args: &DetectArgs) -> Outcome {
    let (image, located) = locate(&args.locate, true)?;
    show(&args.locate, &located, &image, "boxes")
}

pub(crate) fn point(args: &PointArgs) -> Outcome {
    let (image, located) = locate(&args.locate, false)?;
    show(&args.locate, &located, &image, "points")
}

fn locate(args: &LocateArgs, boxes: bool) -> Result<(Image, Located), Failure> {
    let input = Input::single(&args.image);
    if let (Some(target), Input::File(source)) = (&args.draw, &input)
        && matches!((target.canonicalize(), source.canonicalize()), (Ok(target), Ok(source)) if target == source)
    {
        let message = format!("{} is the picture itself, which would be lost", target.display());
        return Err(Failure::message(Exit::Usage, message).with_hint("draw into another file"));
    }
    let image = input.decode(&ImageLimits::default()).with_context(|| input.name())?;
    let files = model::find(&args.model.model, args.model.revision.as_deref())?;
    let engine = model::load(&files, &args.model.device)?;
    let (thing, max_regions) = (args.thing.clone(), usize::from(args.max));
    let request = LocateRequest { image: image.clone(), thing, boxes, max_regions };
    let located = model::locate(&engine, request, &Graceful::begin())?;
    Ok((image, located))
}

/// Draws boxes, and small ones around points, into a copy of the picture.
fn draw(path: &Path, image: &Image, located: &Located) -> anyhow::Result<()> {
    let (mut drawn, long) = (image.clone(), image.width.max(image.height));
    for region in &located.regions {
        let around = if region.size.is_some() {
            edges(region, image)
        } else {
            let ([x, y], reach) = (middle(region, image), (long / 60).max(4));
            [x.saturating_sub(reach), y.saturating_sub(reach), x + reach + 1, y + reach + 1]
        };
        drawn.outline(around, (long / 300).max(2), COLOUR);
    }
    std::fs::write(path, drawn.to_png()?).with_context(|| path.display().to_string())
}

fn show(args: &LocateArgs, located: &Located, image: &Image, name: &str) -> Outcome {
    // What was found is shown first: it is not lost if the picture cannot be written.
    show_regions(args, located, image, name)?;
    if let Some(path) = &args.draw {
        draw(path, image, located)?;
    }
    Ok(Exit::Success)
}

fn show_regions(args: &LocateArgs, located: &Located, image: &Image, name: &str) -> Outcome {
    let regions = &located.regions;
    if args.json {
        let found: Vec<Value> = regions.iter().map(|region| object(region, image)).collect();
        let mut result = json!({
            "image": Input::single(&args.image).name(),
            "thing": args.thing,
            "image_size": located.image.image_size,
            "total_ms": located.total_ms,
        });
        result[name] = found.into();
        print(&format!("{result}\n"))?;
        return Ok(Exit::Success);
    }
    for region in regions {
        let numbers =
            if region.size.is_some() { edges(region, image).to_vec() } else { middle(region, image).to_vec() };
        let numbers: Vec<String> = numbers.iter().map(usize::to_string).collect();
        print(&format!("{}\n", numbers.join(" ")))?;
    }
    if regions.is_empty() {
        note(&format!("no {} found", args.thing));
    }
    Ok(Exit::Success)
}

const COLOUR: [u8; 3] = [255, 32, 32];
