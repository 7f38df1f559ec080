//! `ocelli detect` and `ocelli point`: where something is in a picture.

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
    let (mut image, located) = locate(&args.locate, true)?;
    if let Some(path) = &args.draw {
        for region in &located.regions {
            let thickness = (image.width.max(image.height) / 300).max(2);
            image.outline(edges(region, &image), thickness, COLOUR);
        }
        std::fs::write(path, image.to_png()?).with_context(|| path.display().to_string())?;
    }
    show(&args.locate, &located, &image, "boxes")
}

pub(crate) fn point(args: &PointArgs) -> Outcome {
    let (image, located) = locate(&args.locate, false)?;
    show(&args.locate, &located, &image, "points")
}

fn locate(args: &LocateArgs, boxes: bool) -> Result<(Image, Located), Failure> {
    let input = Input::single(&args.image);
    let image = input.decode(&ImageLimits::default()).with_context(|| input.name())?;
    let files = model::find(&args.model.model, args.model.revision.as_deref())?;
    let engine = model::load(&files, &args.model.device)?;
    let (thing, max_regions) = (args.thing.clone(), usize::from(args.max));
    let request = LocateRequest { image: image.clone(), thing, boxes, max_regions };
    let located = model::locate(&engine, request, &Graceful::begin())?;
    Ok((image, located))
}

fn show(args: &LocateArgs, located: &Located, image: &Image, name: &str) -> Outcome {
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
