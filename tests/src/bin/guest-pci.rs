//! Runs in guests; see `lab::guest`. A FUNCTION is an address or ids such as
//! `1b36:0010`.

use std::env;
use std::process::ExitCode;

use lab::guest::{self, Function, GuestError};

const USAGE: &str = "one of
  guest-pci decode FUNCTION
  guest-pci disk FILE
  guest-pci doors FUNCTION
  guest-pci ends FUNCTION BAR
  guest-pci peer EDU FUNCTION BAR
  guest-pci ports FUNCTION MEMORY-BAR PORT-BAR REGISTER
  guest-pci rates FUNCTION
  guest-pci sleep FUNCTION REGISTER
  guest-pci stray EDU ADDRESS
  guest-pci swap FUNCTION FUNCTION BAR
  guest-pci vectors FUNCTION COUNT
  guest-pci wander FUNCTION REGISTER";

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let words: Vec<_> = arguments.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let reason = error.to_string().replace([' ', '\n'], "_");
            guest::marker("failed", &format!("reason={reason}"));
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> Result<(), GuestError> {
    let find = Function::find;
    match words {
        ["decode", function] => guest::decode(&find(function)?),
        ["disk", file] => guest::disk(file.as_ref()),
        ["doors", function] => guest::doors(&find(function)?),
        ["ends", function, bar] => guest::ends(&find(function)?, number(bar)?),
        ["peer", edu, target, bar] => guest::peer(&find(edu)?, &find(target)?, number(bar)?),
        ["stray", edu, address] => guest::stray(&find(edu)?, number(address)?),
        ["ports", function, memory, ports, register] => {
            let function = find(function)?;
            guest::ports(
                &function,
                number(memory)?,
                number(ports)?,
                number(register)?,
            )
        }
        ["rates", function] => guest::rates(&find(function)?),
        ["sleep", function, register] => guest::sleep(&find(function)?, number(register)?),
        ["swap", one, other, bar] => guest::swap(find(one)?, find(other)?, number(bar)?),
        ["vectors", function, count] => guest::vectors(&find(function)?, number(count)?),
        ["wander", function, register] => guest::wander(find(function)?, number(register)?),
        _ => Err(GuestError::Unexpected(USAGE.to_owned())),
    }
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, GuestError> {
    let wrong = |_| GuestError::Unexpected(format!("'{text}' is no number here"));
    text.parse().map_err(wrong)
}
