//! The pictures of the book: one short trace of a server on six engines.

use std::fs;
use std::path::Path;
use terrane_fit::map::film;
use terrane_fit::{Adaptive, BestFit, Buddy, FirstFit, NextFit, Placement, Span, Tlsf, Workload};

/// Draws `engine.svg` for each engine into `folder`.
pub fn draw(folder: &Path) -> std::io::Result<()> {
    let trace = Workload::Server.trace(64, 11);
    // The same scale for all, with room for the engine that takes the most.
    let space = trace.peak_live() * 3 / 2;
    let engines: [(&str, Box<dyn Placement>); 6] = [
        ("first-fit", Box::new(FirstFit::new())),
        ("next-fit", Box::new(NextFit::new())),
        ("best-fit", Box::new(BestFit::new())),
        ("buddy", Box::new(Buddy::new())),
        ("tlsf", Box::new(Tlsf::new())),
        ("adaptive", Box::new(Adaptive::new())),
    ];
    fs::create_dir_all(folder)?;
    println!("peak live {} of {space} units, {} requests", trace.peak_live(), trace.requests().len());
    for (name, mut engine) in engines {
        engine.add(Span::new(0, space)).map_err(std::io::Error::other)?;
        let picture = film(&trace, engine.as_mut(), space, 720, 240);
        println!("{name}: {} bytes", picture.len());
        fs::write(folder.join(format!("{name}.svg")), picture)?;
    }
    Ok(())
}
