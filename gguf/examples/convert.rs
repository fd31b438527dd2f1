//! `cargo run -p attune-gguf --example convert -- FILE.gguf FOLDER [--keep-blocks]`: converts a GGUF file to a Hugging
//! Face folder, in `f32` or with the file's blocks.

use std::path::Path;
use std::process::ExitCode;

use attune_gguf::convert::{Blocks, convert_with};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (gguf, folder, blocks) = match arguments.as_slice() {
        [gguf, folder] => (gguf, folder, Blocks::Dequantized),
        [gguf, folder, option] if option == "--keep-blocks" => (gguf, folder, Blocks::Kept),
        _ => {
            eprintln!("usage: convert FILE.gguf FOLDER [--keep-blocks]");
            return ExitCode::from(2);
        }
    };
    let mut tenth = 0;
    let converted = convert_with(Path::new(gguf), Path::new(folder), blocks, &mut |progress| {
        if progress.done * 10 / progress.total.max(1) > tenth {
            tenth = progress.done * 10 / progress.total.max(1);
            eprintln!("{} %", tenth * 10);
        }
    });
    match converted {
        Ok(converted) => {
            println!("{}: {} weights", converted.folder.path.display(), converted.folder.parameters);
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}
