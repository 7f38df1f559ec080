//! AMX for machines without it, for tests: a handler for illegal instructions that carries tile instructions out.
//!
//! A processor without AMX refuses every tile instruction, and the system tells the thread that tried with SIGILL. The
//! handler decodes the instruction, does to this thread's emulated tiles and to memory what the manual says, and lets
//! the thread go on behind it. So tests run exactly the code that a processor with AMX runs, some hundred times slower.
//!
//! What the manual forbids (a shape that does not fit, tiles without configuration) ends the process, as it would on
//! the processor. The arithmetic of [`State`] is tested by itself; where there is real AMX, it is compared with that.

use std::cell::UnsafeCell;
use std::ffi::c_void;

use half::bf16;

/// Eight tiles and their shapes.
pub(super) struct State {
    is_configured: bool,
    rows: [usize; 8],
    row_bytes: [usize; 8],
    tiles: [[[u8; 64]; 16]; 8],
}

/// What an instruction does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// `ldtilecfg`.
    LoadShapes,
    /// `sttilecfg`.
    StoreShapes,
    /// `tilerelease`.
    Release,
    /// `tilezero`.
    Zero(usize),
    /// `tileloadd`, `tileloaddt1`.
    Load(usize),
    /// `tilestored`.
    Store(usize),
    /// `tdp…`: sums, left and right operand.
    Multiply(Product, usize, usize, usize),
}

/// What is multiplied: whether left and right bytes are signed, or bf16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Product {
    /// `tdpb[su][su]d`.
    Int8 { left_signed: bool, right_signed: bool },
    /// `tdpbf16ps`.
    Bf16,
}

/// Where an operand in memory is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Address {
    /// Of the first byte.
    pub(super) base: u64,
    /// Bytes from row to row.
    pub(super) stride: u64,
}

/// A decoded instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Instruction {
    pub(super) operation: Operation,
    pub(super) address: Address,
    /// Bytes of the instruction.
    pub(super) len: usize,
}

impl State {
    /// As a thread begins: no tiles.
    pub(super) const NEW: Self =
        Self { is_configured: false, rows: [0; 8], row_bytes: [0; 8], tiles: [[[0; 64]; 16]; 8] };

    /// Carries an instruction out, or says what is wrong with it.
    ///
    /// # Safety
    /// What the instruction reads and writes in memory may be read and written.
    pub(super) unsafe fn execute(&mut self, operation: Operation, address: Address) -> Result<(), &'static str> {
        match operation {
            Operation::LoadShapes => {
                // SAFETY: 64 bytes of an operand that may be read.
                let config = unsafe { (address.base as *const [u8; 64]).read_unaligned() };
                self.load_shapes(&config)?;
            }
            Operation::StoreShapes => {
                // SAFETY: 64 bytes of an operand that may be written.
                unsafe { (address.base as *mut [u8; 64]).write_unaligned(self.shapes()) }
            }
            Operation::Release => *self = Self::NEW,
            Operation::Zero(tile) => {
                self.check(tile)?;
                self.tiles[tile] = [[0; 64]; 16];
            }
            Operation::Load(tile) => {
                self.check(tile)?;
                self.tiles[tile] = [[0; 64]; 16];
                for row in 0..self.rows[tile] {
                    let from = address.base.wrapping_add(address.stride.wrapping_mul(row as u64)) as *const u8;
                    let to = self.tiles[tile][row].as_mut_ptr();
                    // SAFETY: a row of an operand that may be read; tiles are elsewhere.
                    unsafe { from.copy_to_nonoverlapping(to, self.row_bytes[tile]) };
                }
            }
            Operation::Store(tile) => {
                self.check(tile)?;
                for row in 0..self.rows[tile] {
                    let to = address.base.wrapping_add(address.stride.wrapping_mul(row as u64)) as *mut u8;
                    // SAFETY: a row of an operand that may be written; tiles are elsewhere.
                    unsafe { to.copy_from_nonoverlapping(self.tiles[tile][row].as_ptr(), self.row_bytes[tile]) };
                }
            }
            Operation::Multiply(product, sums, left, right) => self.multiply(product, sums, left, right)?,
        }
        Ok(())
    }

    fn load_shapes(&mut self, config: &[u8; 64]) -> Result<(), &'static str> {
        *self = Self::NEW;
        if config[0] == 0 {
            return Ok(());
        }
        if config[0] != 1 || config[1] != 0 || config[2..16].iter().any(|&byte| byte != 0) {
            return Err("palette, start row or reserved bytes");
        }
        let (row_bytes, rows) = (&config[16..48], &config[48..]);
        if row_bytes[16..].iter().chain(&rows[8..]).any(|&byte| byte != 0) {
            return Err("shapes of more than eight tiles");
        }
        for tile in 0..8 {
            self.row_bytes[tile] = usize::from(u16::from_le_bytes([row_bytes[2 * tile], row_bytes[2 * tile + 1]]));
            self.rows[tile] = usize::from(rows[tile]);
            if self.rows[tile] > 16 || self.row_bytes[tile] > 64 {
                return Err("a tile is too large");
            }
            if (self.rows[tile] == 0) != (self.row_bytes[tile] == 0) {
                return Err("a tile has rows without bytes, or bytes without rows");
            }
        }
        self.is_configured = true;
        Ok(())
    }

    fn shapes(&self) -> [u8; 64] {
        let mut config = [0; 64];
        if self.is_configured {
            config[0] = 1;
            for tile in 0..8 {
                config[16 + 2 * tile] = self.row_bytes[tile] as u8;
                config[48 + tile] = self.rows[tile] as u8;
            }
        }
        config
    }

    fn check(&self, tile: usize) -> Result<(), &'static str> {
        if self.is_configured && self.rows[tile] > 0 { Ok(()) } else { Err("a tile without a shape") }
    }

    fn multiply(&mut self, product: Product, sums: usize, left: usize, right: usize) -> Result<(), &'static str> {
        if is_x86_feature_detected!("fma") {
            // SAFETY: as checked.
            unsafe { self.multiply_with_fma(product, sums, left, right) }
        } else {
            self.multiply_anywhere(product, sums, left, right)
        }
    }

    /// The same, some ten times as fast as with multiply-adds from a library.
    #[target_feature(enable = "fma")]
    fn multiply_with_fma(
        &mut self,
        product: Product,
        sums: usize,
        left: usize,
        right: usize,
    ) -> Result<(), &'static str> {
        self.multiply_anywhere(product, sums, left, right)
    }

    #[inline(always)]
    fn multiply_anywhere(
        &mut self,
        product: Product,
        sums: usize,
        left: usize,
        right: usize,
    ) -> Result<(), &'static str> {
        for tile in [sums, left, right] {
            self.check(tile)?;
        }
        if sums == left || sums == right || left == right {
            return Err("the same tile twice");
        }
        let fits = self.row_bytes[left] == 4 * self.rows[right]
            && self.row_bytes[right] == self.row_bytes[sums]
            && self.rows[left] == self.rows[sums]
            && self.row_bytes[sums].is_multiple_of(4);
        if !fits {
            return Err("tiles whose shapes do not fit");
        }
        for row in 0..self.rows[sums] {
            let (left, len) = (self.tiles[left][row], self.row_bytes[left]);
            for column in 0..self.row_bytes[sums] / 4 {
                let place = 4 * column..4 * column + 4;
                let sum = self.tiles[sums][row][place.clone()].try_into().expect("four bytes");
                let right = self.tiles[right].iter().map(|row| four(&row[place.clone()]));
                let quads = left[..len].chunks_exact(4).map(four).zip(right);
                let sum = match product {
                    Product::Int8 { left_signed, right_signed } => {
                        int8(i32::from_le_bytes(sum), quads, left_signed, right_signed).to_le_bytes()
                    }
                    Product::Bf16 => pairs(f32::from_le_bytes(sum), quads).to_le_bytes(),
                };
                self.tiles[sums][row][place].copy_from_slice(&sum);
            }
        }
        Ok(())
    }
}

#[inline(always)]
fn four(bytes: &[u8]) -> [u8; 4] {
    bytes.try_into().expect("four bytes")
}

/// Four products of bytes per step, added without saturation.
#[inline(always)]
fn int8(sum: i32, quads: impl Iterator<Item = ([u8; 4], [u8; 4])>, left_signed: bool, right_signed: bool) -> i32 {
    let value = |byte: u8, signed| if signed { i32::from(byte.cast_signed()) } else { i32::from(byte) };
    quads.fold(sum, |sum, (left, right)| {
        let products = left.iter().zip(right).map(|(&l, r)| value(l, left_signed) * value(r, right_signed));
        products.fold(sum, i32::wrapping_add)
    })
}

/// Even and odd elements are summed apart from zero on, by fused multiply-adds; then both together, then with the sum.
#[inline(always)]
fn pairs(sum: f32, quads: impl Iterator<Item = ([u8; 4], [u8; 4])>) -> f32 {
    let value = |low, high| flushed(bf16::from_le_bytes([low, high]).to_f32());
    let (mut even, mut odd) = (0.0, 0.0);
    for (left, right) in quads {
        even = flushed(value(left[0], left[1]).mul_add(value(right[0], right[1]), even));
        odd = flushed(value(left[2], left[3]).mul_add(value(right[2], right[3]), odd));
    }
    flushed(flushed(sum) + flushed(even + odd))
}

/// Numbers too small for full precision count as zero, going in and coming out.
#[inline(always)]
fn flushed(value: f32) -> f32 {
    if value.is_subnormal() { 0.0_f32.copysign(value) } else { value }
}

/// Decodes a tile instruction; `None` if it is another.
///
/// `registers` are the general ones as instructions number them; `at` is the instruction's own address.
pub(super) fn decode(bytes: &[u8; 16], at: u64, registers: &[u64; 16]) -> Option<Instruction> {
    let [0xC4, second, third, opcode, modrm, ..] = *bytes else { return None };
    // Map 0F38, W = 0, L = 0.
    if second & 0x1F != 2 || third & 0x84 != 0 {
        return None;
    }
    let (prefix, mode) = (third & 3, modrm >> 6);
    let (reg, rm) = (usize::from(modrm >> 3 & 7), usize::from(modrm & 7));
    let other = usize::from(!(third >> 3) & 0xF);
    let sums_of = |product| (other < 8).then_some(Operation::Multiply(product, reg, rm, other));
    let signs = |left_signed, right_signed| Product::Int8 { left_signed, right_signed };
    // Prefixes: 0 none, 1 66, 2 F3, 3 F2.
    let operation = match (opcode, prefix, mode == 3) {
        (0x49, 0, false) => Operation::LoadShapes,
        (0x49, 1, false) => Operation::StoreShapes,
        (0x49, 0, true) if modrm == 0xC0 => Operation::Release,
        (0x49, 3, true) => Operation::Zero(reg),
        (0x4B, 1 | 3, false) => Operation::Load(reg),
        (0x4B, 2, false) => Operation::Store(reg),
        (0x5C, 2, true) => sums_of(Product::Bf16)?,
        (0x5E, 0, true) => sums_of(signs(false, false))?,
        (0x5E, 1, true) => sums_of(signs(false, true))?,
        (0x5E, 2, true) => sums_of(signs(true, false))?,
        (0x5E, 3, true) => sums_of(signs(true, true))?,
        _ => return None,
    };
    if mode == 3 {
        return Some(Instruction { operation, address: Address::default(), len: 5 });
    }
    let high = |bit: u8| if second >> bit & 1 == 0 { 8 } else { 0 };
    let mut len = 5;
    let mut address = Address::default();
    let mut base = Some(rm + high(5));
    if rm == 4 {
        let sib = bytes[len];
        len += 1;
        let index = usize::from(sib >> 3 & 7) + high(6);
        if index != 4 {
            address.stride = registers[index] << (sib >> 6);
        }
        base = Some(usize::from(sib & 7) + high(5));
        if sib & 7 == 5 && mode == 0 {
            base = None;
        }
    } else if matches!(operation, Operation::Load(_) | Operation::Store(_)) {
        return None;
    }
    let displacement = match (mode, base, rm) {
        (1, ..) => (i64::from(bytes[len].cast_signed()), 1),
        (0, Some(_), rm) if rm != 5 => (0, 0),
        _ => (i64::from(i32::from_le_bytes(four(&bytes[len..len + 4]))), 4),
    };
    len += displacement.1;
    address.base = match base {
        // Relative to the next instruction.
        _ if rm == 5 && mode == 0 => at.wrapping_add(len as u64),
        Some(base) => registers[base],
        None => 0,
    };
    address.base = address.base.wrapping_add_signed(displacement.0);
    if matches!(operation, Operation::LoadShapes | Operation::StoreShapes) {
        // Here an index is part of the address.
        address.base = address.base.wrapping_add(address.stride);
    }
    Some(Instruction { operation, address, len })
}

thread_local! {
    /// Constant at first and never dropped: to reach it in a handler takes no memory and no lock.
    static THREAD: UnsafeCell<State> = const { UnsafeCell::new(State::NEW) };
}

/// Takes illegal instructions of this process over, from now on; true if the system lets it.
pub(super) fn install() -> bool {
    let action = Action {
        handler: on_illegal_instruction as *const () as usize,
        mask: [0; 16],
        flags: WITH_CONTEXT,
        restorer: 0,
    };
    // SAFETY: the structure is as the C library wants it, and the handler as the flag says.
    unsafe { sigaction(SIGILL, &raw const action, std::ptr::null_mut()) == 0 }
}

/// Runs on the thread that met the instruction, in between two of its instructions.
extern "C" fn on_illegal_instruction(_signal: i32, _info: *mut c_void, context: *mut Context) {
    // SAFETY: the system passes the thread's own registers, to be read and changed.
    let registers = unsafe { &mut (*context).registers };
    let at = registers[RIP];
    // SAFETY: the thread was about to execute what is there; code of the test goes on for longer than an instruction.
    let bytes = unsafe { (at as *const [u8; 16]).read_unaligned() };
    let general = NUMBERED.map(|register| registers[register]);
    let problem = match decode(&bytes, at, &general) {
        None => "no tile instruction",
        Some(instruction) => THREAD.with(|state| {
            // SAFETY: the state is this thread's, and tile instructions do not run within this handler; memory
            // operands are those that the thread was about to access itself.
            let done = unsafe { (*state.get()).execute(instruction.operation, instruction.address) };
            registers[RIP] += instruction.len as u64;
            done.err().unwrap_or("")
        }),
    };
    if !problem.is_empty() {
        let parts = ["\nillegal instruction: ", problem, "\n"];
        for part in parts {
            // SAFETY: as many bytes as there are, to the standard error.
            unsafe { write(2, part.as_ptr().cast(), part.len()) };
        }
        // SAFETY: ends the process without unwinding, as an illegal instruction would.
        unsafe { abort() };
    }
}

/// `struct sigaction` of the C libraries on x86-64 Linux.
#[repr(C)]
struct Action {
    handler: usize,
    mask: [u64; 16],
    flags: i32,
    restorer: usize,
}

/// The beginning of `ucontext_t` on x86-64 Linux.
#[repr(C)]
struct Context {
    flags: u64,
    link: *mut c_void,
    stack: [u64; 3],
    registers: [u64; 23],
}

unsafe extern "C" {
    fn sigaction(signal: i32, action: *const Action, old: *mut Action) -> i32;
    fn write(file: i32, bytes: *const c_void, len: usize) -> isize;
    fn abort() -> !;
}

const SIGILL: i32 = 4;
/// `SA_SIGINFO`.
const WITH_CONTEXT: i32 = 4;
/// Place of the instruction pointer in a context.
const RIP: usize = 16;
/// Places of rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8 … r15 in a context.
const NUMBERED: [usize; 16] = [13, 14, 12, 11, 15, 10, 9, 8, 0, 1, 2, 3, 4, 5, 6, 7];

#[cfg(test)]
mod tests {
    use super::super::is_usable;
    use super::super::tile::{Amx, Left, Shapes, Tiles};
    use super::*;
    use crate::testing::{bits, numbers};

    const DESTINATION: usize = 0;
    const LEFT: usize = 4;
    const RIGHT: usize = 6;

    /// Shapes of sums, left and right: (rows, bytes per row).
    fn configured(sums: (usize, usize), left: (usize, usize), right: (usize, usize)) -> State {
        let mut state = State::NEW;
        state.load_shapes(&config(&[(DESTINATION, sums), (LEFT, left), (RIGHT, right)])).unwrap();
        state
    }

    fn config(shapes: &[(usize, (usize, usize))]) -> [u8; 64] {
        let mut config = [0; 64];
        config[0] = 1;
        for &(tile, (rows, row_bytes)) in shapes {
            config[16 + 2 * tile] = row_bytes as u8;
            config[48 + tile] = rows as u8;
        }
        config
    }

    fn fill(state: &mut State, tile: usize, bytes: impl Fn(usize, usize) -> u8) {
        for row in 0..state.rows[tile] {
            for at in 0..state.row_bytes[tile] {
                state.tiles[tile][row][at] = bytes(row, at);
            }
        }
    }

    fn multiply(state: &mut State, product: Product) -> Result<(), &'static str> {
        state.multiply(product, DESTINATION, LEFT, RIGHT)
    }

    fn int(state: &State, row: usize, column: usize) -> i32 {
        i32::from_le_bytes(four(&state.tiles[DESTINATION][row][4 * column..4 * column + 4]))
    }

    fn float(state: &State, row: usize, column: usize) -> f32 {
        f32::from_bits(int(state, row, column).cast_unsigned())
    }

    #[test]
    fn bytes_are_signed_as_the_instruction_says() {
        // One quad: (200, 1, 2, 255) · (255, 3, 100, 128), with 200 = -56, 255 = -1, 128 = -128 where signed.
        let cases = [
            (false, false, 200 * 255 + 3 + 200 + 255 * 128),
            (false, true, -200 + 3 + 200 - 255 * 128),
            (true, false, -56 * 255 + 3 + 200 - 128),
            (true, true, 56 + 3 + 200 + 128),
        ];
        for (left_signed, right_signed, expected) in cases {
            let mut state = configured((1, 4), (1, 4), (1, 4));
            fill(&mut state, LEFT, |_, at| [200, 1, 2, 255][at]);
            fill(&mut state, RIGHT, |_, at| [255, 3, 100, 128][at]);
            multiply(&mut state, Product::Int8 { left_signed, right_signed }).unwrap();
            multiply(&mut state, Product::Int8 { left_signed, right_signed }).unwrap();
            assert_eq!(int(&state, 0, 0), 2 * expected, "{left_signed} {right_signed}");
        }
    }

    #[test]
    fn rows_meet_columns() {
        // left[r][4j+i] = r + 1 where i = 0, right[j][4n+i] = 10j + n where i = 0.
        let mut state = configured((3, 20), (3, 8), (2, 20));
        fill(&mut state, LEFT, |row, at| if at % 4 == 0 { row as u8 + 1 } else { 0 });
        fill(&mut state, RIGHT, |row, at| if at % 4 == 0 { (10 * row + at / 4) as u8 } else { 77 });
        multiply(&mut state, Product::Int8 { left_signed: true, right_signed: false }).unwrap();
        for row in 0..3 {
            for column in 0..5 {
                let expected = (row + 1) * (column + 10 + column);
                assert_eq!(int(&state, row, column), expected as i32);
            }
        }
        assert_eq!(state.tiles[DESTINATION][3], [0; 64]);
    }

    #[test]
    fn even_and_odd_elements_are_summed_apart() {
        // Evens: 2^24 · 1, then 1 · 1: lost in float32. Odds: 1 · 1 twice. Together 2^24 + 2.
        let mut state = configured((1, 4), (1, 8), (2, 4));
        let one = bf16::from_f32(1.0).to_le_bytes();
        let large = bf16::from_f32(16_777_216.0).to_le_bytes();
        fill(&mut state, LEFT, |_, at| if at < 2 { large[at] } else { one[at % 2] });
        fill(&mut state, RIGHT, |_, at| one[at % 2]);
        multiply(&mut state, Product::Bf16).unwrap();
        assert_eq!(float(&state, 0, 0), 16_777_218.0);
    }

    #[test]
    fn tiny_numbers_count_as_zero() {
        let tiny = bf16::from_bits(1).to_le_bytes();
        let small = bf16::from_f32(1e-30).to_le_bytes();
        for (left, right) in [(tiny, bf16::from_f32(1e30).to_le_bytes()), (small, small)] {
            let mut state = configured((1, 4), (1, 4), (1, 4));
            fill(&mut state, LEFT, |_, at| left[at % 2]);
            fill(&mut state, RIGHT, |_, at| right[at % 2]);
            multiply(&mut state, Product::Bf16).unwrap();
            assert_eq!(float(&state, 0, 0), 0.0);
        }
        assert_eq!(flushed(-f32::from_bits(3)).to_bits(), (-0.0f32).to_bits());
    }

    /// Where there is AMX, this is what ties the emulator to it; elsewhere it is what ties the handler to [`State`].
    #[test]
    fn instructions_do_what_the_emulator_says() {
        assert!(is_usable());
        // SAFETY: as checked.
        let tiles = Tiles::new(unsafe { Amx::new() }, &Shapes::whole());
        // Some of them very small, so that products vanish, or nearly.
        let exponent = |at: usize| 2.0f32.powi([0, 3, -70, -120, 60][at % 5]);
        let floats: Vec<u8> = numbers(5, 4 * 512)
            .into_iter()
            .enumerate()
            .flat_map(|(at, value)| bf16::from_f32(value * exponent(at)).to_le_bytes())
            .collect();
        let (left, right) = floats.split_at(2048);
        let mut state = configured((16, 64), (16, 64), (16, 64));
        let step = |bytes: &[u8]| -> [[f32; 16]; 16] {
            let float = |at: usize| f32::from_le_bytes(four(&bytes[4 * at..4 * at + 4]));
            std::array::from_fn(|row| std::array::from_fn(|at| float(16 * row + at)))
        };
        let columns = [[step(&right[..1024])], [step(&right[1024..])]];
        let mut sums = [[[[0.0; 16]; 16]; 2]; 2];
        let operand = Left { bytes: left, stride: 64, next: (left.as_ptr(), 1) };
        tiles.multiply_bf16(operand, [&columns[0], &columns[1]], &mut sums, false);
        for (half, panel) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            fill(&mut state, DESTINATION, |_, _| 0);
            fill(&mut state, LEFT, |row, at| left[1024 * half + 64 * row + at]);
            fill(&mut state, RIGHT, |row, at| right[1024 * panel + 64 * row + at]);
            multiply(&mut state, Product::Bf16).unwrap();
            for (row, sums) in sums[panel][half].iter().enumerate() {
                let expected: [u32; 16] = std::array::from_fn(|column| int(&state, row, column).cast_unsigned());
                assert_eq!(bits(sums), expected, "bf16 {half} {panel}: {row}");
            }
        }
        let codes: Vec<i8> = left.iter().map(|byte| byte.cast_signed()).collect();
        let mut sums = [[[0; 16]; 16]; 4];
        tiles.multiply_int8([&codes[..1024], &codes[1024..]], 64, [&right[..1024], &right[1024..]], &mut sums);
        for (tile, sums) in sums.iter().enumerate() {
            fill(&mut state, DESTINATION, |_, _| 0);
            fill(&mut state, LEFT, |row, at| left[1024 * (tile / 2) + 64 * row + at]);
            fill(&mut state, RIGHT, |row, at| right[1024 * (tile % 2) + 64 * row + at]);
            multiply(&mut state, Product::Int8 { left_signed: true, right_signed: false }).unwrap();
            for (row, sums) in sums.iter().enumerate() {
                assert_eq!(*sums, std::array::from_fn(|column| int(&state, row, column)), "int8 {tile}: {row}");
            }
        }
    }

    #[test]
    fn what_the_manual_forbids_is_refused() {
        let mut state = State::NEW;
        assert!(state.check(0).is_err());
        let too_large = [config(&[(0, (17, 64))]), config(&[(0, (1, 65))]), config(&[(0, (1, 0))])];
        let mut strange = [config(&[]); 3];
        (strange[0][0], strange[1][1], strange[2][63]) = (2, 1, 1);
        for config in too_large.iter().chain(&strange) {
            assert!(state.load_shapes(config).is_err());
        }
        for shapes in [((1, 4), (2, 4), (1, 4)), ((1, 8), (1, 4), (1, 4)), ((1, 4), (1, 8), (1, 4))] {
            assert_eq!(
                multiply(&mut configured(shapes.0, shapes.1, shapes.2), Product::Bf16),
                Err("tiles whose shapes do not fit")
            );
        }
        let same = configured((1, 4), (1, 4), (1, 4)).multiply(Product::Bf16, 0, 4, 4);
        assert_eq!(same, Err("the same tile twice"));
    }

    #[test]
    fn instructions_are_decoded() {
        let mut registers = [0; 16];
        for (number, register) in registers.iter_mut().enumerate() {
            *register = 0x1000 * number as u64;
        }
        let plain = |operation| (operation, 0, 0);
        let product = |left_signed, right_signed, s, l, r| {
            Operation::Multiply(Product::Int8 { left_signed, right_signed }, s, l, r)
        };
        // As the assembler of LLVM writes them.
        type Case<'a> = (&'a [u8], (Operation, u64, u64));
        let cases: [Case<'_>; 15] = [
            (&[0xC4, 0xE2, 0x78, 0x49, 0xC0], plain(Operation::Release)),
            (&[0xC4, 0xE2, 0x78, 0x49, 0x00], (Operation::LoadShapes, 0, 0)),
            (&[0xC4, 0xC2, 0x78, 0x49, 0x45, 0x10], (Operation::LoadShapes, 0xD010, 0)),
            (&[0xC4, 0xE2, 0x78, 0x49, 0x05, 0x10, 0, 0, 0], (Operation::LoadShapes, 0x7_0000 + 9 + 0x10, 0)),
            (&[0xC4, 0xE2, 0x79, 0x49, 0x04, 0x24], (Operation::StoreShapes, 0x4000, 0)),
            (&[0xC4, 0xE2, 0x7B, 0x49, 0xD8], plain(Operation::Zero(3))),
            // tileloadd tmm4, [rsi + rcx*1]
            (&[0xC4, 0xE2, 0x7B, 0x4B, 0x24, 0x0E], (Operation::Load(4), 0x6000, 0x1000)),
            // tileloaddt1 tmm5, [r8 + r9*2 - 0x80]
            (&[0xC4, 0x82, 0x79, 0x4B, 0x6C, 0x48, 0x80], (Operation::Load(5), 0x7F80, 0x1_2000)),
            // tilestored [rbp + rax*8 + 0x400], tmm1
            (&[0xC4, 0xE2, 0x7A, 0x4B, 0x8C, 0xC5, 0, 4, 0, 0], (Operation::Store(1), 0x5400, 0)),
            (&[0xC4, 0xE2, 0x43, 0x5E, 0xC6], plain(product(true, true, 0, 6, 7))),
            (&[0xC4, 0xE2, 0x4A, 0x5E, 0xD5], plain(product(true, false, 2, 5, 6))),
            (&[0xC4, 0xE2, 0x49, 0x5E, 0xC4], plain(product(false, true, 0, 4, 6))),
            (&[0xC4, 0xE2, 0x48, 0x5E, 0xC4], plain(product(false, false, 0, 4, 6))),
            (&[0xC4, 0xE2, 0x42, 0x5C, 0xCC], plain(Operation::Multiply(Product::Bf16, 1, 4, 7))),
            (&[0xC4, 0xC2, 0x78, 0x49, 0x07], (Operation::LoadShapes, 0xF000, 0)),
        ];
        for (bytes, (operation, base, stride)) in cases {
            let mut padded = [0xCC; 16];
            padded[..bytes.len()].copy_from_slice(bytes);
            let expected = Instruction { operation, address: Address { base, stride }, len: bytes.len() };
            assert_eq!(decode(&padded, 0x7_0000, &registers), Some(expected), "{bytes:x?}");
        }
        // vpdpbusd ymm0, ymm1, ymm2 in its VEX form; ud2.
        for bytes in [[0xC4, 0xE2, 0x75, 0x50, 0xC2], [0x0F, 0x0B, 0, 0, 0]] {
            let mut padded = [0; 16];
            padded[..5].copy_from_slice(&bytes);
            assert_eq!(decode(&padded, 0, &registers), None);
        }
    }
}
