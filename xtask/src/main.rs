//! Terrane's own commands.

fn main() {
    eprintln!("usage: cargo xtask <command>");
    std::process::exit(2);
}
