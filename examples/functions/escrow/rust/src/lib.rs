//! `escrow OPERATION ESCROW PARTY AMOUNT PLATFORM CUT_BPS`
//!
//! 1 holds the payer's money in the escrow account, 2 releases it to the payee less the platform's
//! cut, 3 gives it back to the payer.

#![no_std]

const INSUFFICIENT_FUNDS: i32 = 1;
const BAD_AMOUNT: i32 = 128;
const BAD_CUT: i32 = 129;
const UNKNOWN_OPERATION: i32 = 130;
const NOT_HELD: i32 = 131;
const BAD_ACCOUNT: i32 = 132;

const HOLD: i64 = 1;
const RELEASE: i64 = 2;
const REFUND: i64 = 3;

/// The other side of deposits and withdrawals: it holds nothing for anybody.
const SYSTEM: u64 = 0;

/// One hundred percent in basis points.
const WHOLE: u64 = 10_000;
const MAX_BPS: i64 = WHOLE as i64;

#[link(wasm_import_module = "ledger")]
unsafe extern "C" {
    safe fn credit(account: u64, amount: u64);
    safe fn debit(account: u64, amount: u64);
    safe fn get_balance(account: u64) -> i64;
}

/// `amount * bps / 10_000`, rounded down, where the product need not fit into 64 bits.
/// With `bps <= 10_000` the result is at most `amount`.
fn share(amount: u64, bps: u64) -> u64 {
    amount / WHOLE * bps + amount % WHOLE * bps / WHOLE
}

fn hold(payer: u64, escrow: u64, amount: i64) -> i32 {
    if get_balance(payer) < amount {
        return INSUFFICIENT_FUNDS;
    }
    credit(payer, amount as u64);
    debit(escrow, amount as u64);
    0
}

/// Gives `amount` from the escrow account, `cut` of it to the platform and the rest to the party.
fn pay_out(escrow: u64, party: u64, amount: i64, platform: u64, cut: u64) -> i32 {
    if get_balance(escrow) < amount {
        return NOT_HELD;
    }
    credit(escrow, amount as u64);
    debit(party, amount as u64 - cut);
    if cut != 0 {
        debit(platform, cut);
    }
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn execute(
    operation: i64,
    escrow: u64,
    party: u64,
    amount: i64,
    platform: u64,
    cut_bps: i64,
    _: i64,
    _: i64,
) -> i32 {
    if !matches!(operation, HOLD..=REFUND) {
        return UNKNOWN_OPERATION;
    }
    if escrow == SYSTEM || escrow == party {
        return BAD_ACCOUNT;
    }
    if amount <= 0 {
        return BAD_AMOUNT;
    }
    match operation {
        HOLD => hold(party, escrow, amount),
        RELEASE if escrow == platform => BAD_ACCOUNT,
        RELEASE if !matches!(cut_bps, 0..=MAX_BPS) => BAD_CUT,
        RELEASE => {
            let cut = share(amount as u64, cut_bps as u64);
            pay_out(escrow, party, amount, platform, cut)
        }
        _ => pay_out(escrow, party, amount, platform, 0),
    }
}

/// Ends the call: the ledger undoes it with INVALID_OPERATION. That the message is not looked at lets
/// the compiler leave it out.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    core::arch::wasm32::unreachable()
}
